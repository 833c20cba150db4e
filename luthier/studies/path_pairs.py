"""The stage of the classic path that makes comparisons: the tuned model answers, and rewards, a judge or a person tell its answers apart."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import Interrupted, RecipeError
from luthier.evaluation.grading import Aids
from luthier.generation.requests import Completed
from luthier.prediction.passes import Progress
from luthier.prediction.text_model import TextModel
from luthier.rewarded import models_of
from luthier.rlhf.parts import Prompts
from luthier.rlhf.rewards import Reward, Rewards
from luthier.store.files import write_text
from luthier.studies.judged_pairs import judge_of, judged_pairs
from luthier.studies.own_pairs import Sampled, answer_rows, best_and_worst, drawn

Announce = Callable[[str], None]
PAIRS, ANSWERS, JUDGMENTS = "pairs.jsonl", "answers.jsonl", "judgments.jsonl"


@dataclass(frozen=True)
class PairStage:
    """What comparisons are made with. rewards: those wanted, their files where they are. judge: loads the model that judges.

    out: the path's folder.
    """

    wanted: Sampled
    rewards: tuple[Reward, ...]
    judge: Callable[[], TextModel] | None
    seed: int
    out: Path
    announce: Announce
    progress: Progress


def make_pairs(stage: PairStage, model: TextModel, prompts: Prompts) -> None:
    """Have a model answer prompts, and write `pairs.jsonl`.

    Raises: Interrupted where a person is to judge, with the command to do so; RecipeError where no answer is better than another.
    """
    wanted, out = stage.wanted, stage.out
    answers = drawn(model, prompts, wanted, stage.seed, stage.progress)
    rows = list(answer_rows(prompts, answers))
    if wanted.by != "rewards":
        _write_rows(out / ANSWERS, rows)
    if wanted.by == "person":
        raise _to_be_judged(out)
    judge = stage.judge
    found = _told_apart(stage, model, prompts, answers, rows) if judge is None else _judged(stage, judge())
    if not found:
        raise RecipeError(
            "No prompt has two answers of which one is better: there is no pair.",
            "Give other prompts, or somebody else who tells answers apart.",
            field="pairs",
        )
    stage.announce(f"{len(found)} pairs of {len(rows)} prompts.")
    _write_rows(out / PAIRS, found)


def _to_be_judged(out: Path) -> Interrupted:
    files = (out / ANSWERS, out / "judged.jsonl", out / PAIRS)
    asked, judged, made = (shlex.quote(str(file)) for file in files)
    return Interrupted(
        f"The answers to be judged are in {out / ANSWERS}.",
        f"Judge them with 'luthier judge {asked} --out {judged} --pairs {made}' (with --judge MODEL added a model judges), then "
        "begin again.",
        exit_code=0,
    )


def _told_apart(
    stage: PairStage,
    model: TextModel,
    prompts: Prompts,
    answers: Sequence[Sequence[Completed]],
    rows: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """The best and the worst answer to each prompt, by rewards."""
    models = models_of(stage.rewards, model.language_model, stage.announce)
    with Rewards(stage.rewards, Aids(), models=models, announce=stage.announce) as rewards:
        worths = rewards(
            [prompts.answer(row, answer.text, answer.tokens) for row, own in enumerate(answers) for answer in own]
        )
    return list(best_and_worst(rows, [worth.reward for worth in worths], stage.wanted.num_answers))


def _judged(stage: PairStage, model: TextModel) -> list[dict[str, Any]]:
    """The pairs in whose winner a model is sure."""
    wanted, out = stage.wanted, stage.out
    assert wanted.judge is not None
    judge = judge_of(wanted.judge, model, wanted.guideline)
    return judged_pairs(
        out / ANSWERS, out / JUDGMENTS, judge, wanted.pairs_per_prompt, stage.seed, stage.announce, stage.progress
    )


def _write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
