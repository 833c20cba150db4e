"""A run that learned from rewards, measured by them: what base and tuned model answer to the same prompts, and what it is worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from luthier.errors import DataError
from luthier.evaluation.best_of_n import BestOfN, curve
from luthier.evaluation.candidates import Candidate
from luthier.evaluation.grading import Aids
from luthier.evaluation.measure import Measure
from luthier.evaluation.rows import Rows
from luthier.evaluation.safety.probe import Score, probe_safety, read_probes
from luthier.evaluation.unscored import scores_of
from luthier.evaluation.verdict import Answered, Evaluation
from luthier.generation.engine import generate
from luthier.generation.requests import Completed, Request
from luthier.generation.settings import Sampling
from luthier.prediction.passes import Passes
from luthier.prediction.text_model import TextModel
from luthier.rewarded import models_of, prompts_of
from luthier.rlhf.contract import RolloutObjective
from luthier.rlhf.parts import Prompts, requests_of
from luthier.rlhf.rewards import Rewards, Scorer
from luthier.rlhf.worth import Answer, Worth

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
    best_of: int = 0,
    safety: bool = False,
) -> Evaluation:
    """The candidates by the reward of their answers, and by each part of it and what is only watched.

    best_of: of so many answers to each prompt, drawn as the run drew them, what choosing the best of n earns; 0: none are drawn.
    safety: whether the candidates are also put to the probes of safety and bias, and reward models judge their answers there.
    Raises: DataError, if there are no prompts, or no prompt's answers have a reward.
    """
    chosen = rows.records[:limit]
    if not chosen:
        raise DataError("There are no prompts to answer.", "Give a file that holds at least one.")
    prompts = prompts_of(rows.examples[: len(chosen)], [record for record, _ in chosen])
    asked = sampling or Sampling(max_new_tokens=objective.max_new_tokens)
    answers = [_answers(each, tuned, prompts, asked, passes) for each in candidates]
    models = models_of(objective.models, tuned.language_model, announce)
    with Rewards(objective.rewards, Aids(), objective.watched, models, announce) as rewards:
        worths = [
            rewards([prompts.answer(row, answer.text, answer.tokens) for row, answer in enumerate(own)])
            for own in answers
        ]
        drawing = objective.sampling(asked.seed).model_copy(update={"max_new_tokens": asked.max_new_tokens})
        drawn = {
            each.name: _scored(each, tuned, prompts, drawing, best_of, rewards, passes)
            for each in (candidates if best_of else ())
        }
    scores = {name: _score(each) for name, each in models.items()}
    probed = probe_safety(candidates, tuned, passes, read_probes(), scores) if safety else None
    notes = (
        [] if len(chosen) == len(rows.records) else [f"The first {len(chosen)} of {len(rows.records)} rows were used."]
    )
    return Evaluation(
        candidates=tuple(each.name for each in candidates),
        num_rows=len(chosen),
        measures=tuple(_measures(worths)),
        notes=tuple(notes),
        safety=probed,
        details=_curves(drawn, best_of, [each.called for each in objective.watched]) if best_of else None,
        answers=tuple(
            Answered(origin, prompts.text(row), "", tuple(own[row].text for own in answers))
            for row, (_, origin) in enumerate(chosen)
        ),
    )


def _score(model: Scorer) -> Score:
    """A reward model as the probes ask it."""

    def score(
        prompts: Sequence[str], requests: Sequence[Request], answers: Sequence[Completed]
    ) -> Sequence[float | None]:
        rows = zip(prompts, requests, answers, strict=True)
        grades = model([Answer(asked, own.text, {}, None, request.prompt, own.tokens) for asked, request, own in rows])
        return [grade.score for grade in grades]

    return score


Scored = Sequence[Sequence[Worth]]
"""What the answers to each prompt are worth."""


def _scored(
    candidate: Candidate,
    tuned: TextModel,
    prompts: Prompts,
    sampling: Sampling,
    count: int,
    rewards: Rewards,
    passes: Passes,
) -> Scored:
    """Several answers of a candidate to each prompt, rewarded."""
    requests = requests_of(prompts.examples, sampling, candidate.adapter, tuned.renderer.stop_ids, count)
    task = f"{candidate.name}: {count} answers each"
    drawn = generate(
        candidate.model,
        requests,
        cache_bytes=passes.cache_bytes,
        progress=lambda done, total: passes.progress(task, done, total),
    )
    worths = rewards([prompts.answer(at // count, answer.text, answer.tokens) for at, answer in enumerate(drawn)])
    return [worths[start : start + count] for start in range(0, len(worths), count)]


def _curves(drawn: Mapping[str, Scored], count: int, watched: Sequence[str]) -> BestOfN:
    """The best of n by reward, and what else that choice is worth, over the prompts whose answers all have every number."""
    known = [
        row
        for row in range(len(next(iter(drawn.values()))))
        if all(
            worth.reward is not None and all(worth.parts[name] is not None for name in watched)
            for own in drawn.values()
            for worth in own[row]
        )
    ]
    if not known:
        raise DataError("No prompt's answers all have a number.", "docs/rlhf.md says what rewards may read.")

    def numbers(worths: Sequence[Worth]) -> dict[str, list[float]]:
        found = {"reward": [worth.reward or 0.0 for worth in worths]}
        return found | {name: [worth.parts[name] or 0.0 for worth in worths] for name in watched}

    curves = {name: curve([numbers(own[row]) for row in known], count) for name, own in drawn.items()}
    return BestOfN(curves, len(known))


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
    scores = scores_of(values)
    if scores is None:
        raise DataError(f"No answer has a number for {name}.", "docs/rlhf.md says what rewards may read.")
    return scores.measure(name, is_open=True)
