"""A run that learned from rewards, measured by them: what base and tuned model answer to the same prompts, and what it is worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from luthier.errors import DataError
from luthier.evaluation.compare import Candidate, comparisons
from luthier.evaluation.grading import Aids
from luthier.evaluation.intervals import bootstrap_mean
from luthier.evaluation.measure import Measure, margin_by_spread
from luthier.evaluation.rows import Rows
from luthier.evaluation.verdict import Answered, Evaluation
from luthier.generation.engine import generate
from luthier.generation.requests import Completed
from luthier.generation.settings import Sampling
from luthier.prediction.passes import Passes
from luthier.prediction.text_model import TextModel
from luthier.rewarded import models_of, prompts_of
from luthier.rlhf.contract import RolloutObjective
from luthier.rlhf.parts import Prompts, requests_of
from luthier.rlhf.rewards import Rewards, Worth

Announce = Callable[[str], None]


def evaluate_rewarded(
    objective: RolloutObjective,
    candidates: Sequence[Candidate],
    tuned: TextModel,
    rows: Rows,
    passes: Passes,
    limit: int | None,
    sampling: Sampling | None,
    announce: Announce,
) -> Evaluation:
    """The candidates by the reward of their answers, and by each part of it and what is only watched.

    Raises: DataError, if there are no prompts, or no prompt's answers have a reward.
    """
    chosen = rows.records[:limit]
    if not chosen:
        raise DataError("There are no prompts to answer.", "Give a file that holds at least one.")
    prompts = prompts_of(rows.examples[: len(chosen)], [record for record, _ in chosen])
    asked = sampling or Sampling(max_new_tokens=objective.max_new_tokens)
    answers = [_answers(each, tuned, prompts, asked, passes) for each in candidates]
    models = models_of(objective, tuned.language_model, announce)
    with Rewards(objective.rewards, Aids(), objective.watched, models) as rewards:
        worths = [
            rewards([prompts.answer(row, answer.text, answer.tokens) for row, answer in enumerate(own)])
            for own in answers
        ]
    notes = (
        [] if len(chosen) == len(rows.records) else [f"The first {len(chosen)} of {len(rows.records)} rows were used."]
    )
    return Evaluation(
        candidates=tuple(each.name for each in candidates),
        num_rows=len(chosen),
        measures=tuple(_measures(worths)),
        notes=tuple(notes),
        answers=tuple(
            Answered(origin, prompts.text(row), "", tuple(own[row].text for own in answers))
            for row, (_, origin) in enumerate(chosen)
        ),
    )


def _answers(
    candidate: Candidate, tuned: TextModel, prompts: Prompts, sampling: Sampling, passes: Passes
) -> list[Completed]:
    requests = requests_of(prompts.examples, sampling, candidate.adapter, tuned.renderer.stop_ids)
    task = f"{candidate.name}: answers"
    return generate(
        candidate.model,
        requests,
        cache_bytes=passes.cache_bytes,
        progress=lambda done, total: passes.progress(task, done, total),
    )


def _measures(worths: Sequence[Sequence[Worth]]) -> list[Measure]:
    """The reward, and where it has several parts or something is watched, each of them."""
    names = list(worths[0][0].parts)
    measures = [_measure("reward", [[worth.reward for worth in own] for own in worths])]
    if len(names) > 1:
        measures += [
            replace(_measure(name, [[worth.parts[name] for worth in own] for own in worths]), witness="part")
            for name in names
        ]
    return measures


def _measure(name: str, values: Sequence[Sequence[float | None]]) -> Measure:
    """A measure over the rows that all candidates have a number for."""
    rows = [row for row in range(len(values[0])) if all(own[row] is not None for own in values)]
    if not rows:
        raise DataError(f"No answer has a number for {name}.", "docs/rlhf.md says what rewards may read.")
    known = [[number for row in rows if (number := own[row]) is not None] for own in values]
    estimates = tuple(bootstrap_mean(own) for own in known)
    return Measure(name, True, len(rows), estimates, comparisons(known), margin=margin_by_spread(known[0]) or 1e-9)
