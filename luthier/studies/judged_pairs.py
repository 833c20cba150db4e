"""Pairs that a model judges: which of two answers to a prompt is the better one, asked in both orders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from luthier.evaluation.judged.blind import pairs_of
from luthier.evaluation.judged.by_judge import judge_summaries, settled
from luthier.evaluation.judged.by_person import preference_rows
from luthier.evaluation.judged.model_session import MOST_UNREADABLE, judge_by_model
from luthier.evaluation.judged.questions import questions_in
from luthier.evaluation.judged.records import JudgmentFile
from luthier.evaluation.judged.verdicts import Judge, TextJudge
from luthier.generation.settings import Sampling
from luthier.prediction.passes import Progress
from luthier.prediction.text_model import TextModel
from luthier.store.files import locked
from luthier.studies.judging import asking_model

_MOST_TOKENS = 512


def judge_of(name: str, model: TextModel, guideline: str | None) -> Judge:
    """A model that writes, as a judge."""
    settings = {"kind": "model", "max_tokens": _MOST_TOKENS}
    return TextJudge(name, asking_model(model, Sampling(max_new_tokens=_MOST_TOKENS)), settings, guideline)


def judged_pairs(
    answers: Path,
    judgments: Path,
    judge: Judge,
    per_prompt: int,
    seed: int,
    announce: Callable[[str], None],
    progress: Progress,
) -> list[dict[str, Any]]:
    """Rows with prompt, chosen and rejected: of the pairs whose winner is the same in both orders.

    answers: rows of a prompt and its answers. judgments: where verdicts go as they come; those that are there are not asked for again.
    per_prompt: most pairs of a prompt.

    Raises: as `pairs_of` and `judge_by_model`.
    """
    pairs = pairs_of(questions_in(str(answers), announce), per_prompt, announce)
    with locked(judgments, announce=announce):
        file = JudgmentFile.opened(judgments, announce)
        judge_by_model(pairs, file, judge, seed=seed, most_unreadable=MOST_UNREADABLE, progress=progress)
    for summary in judge_summaries(file.records):
        for line in summary.as_lines():
            announce(line)
    found = preference_rows(settled(file.records))
    for line in found.as_lines():
        announce(line)
    return list(found.rows)
