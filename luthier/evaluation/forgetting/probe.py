"""What a model knows beyond the rows that it is measured on, before and after tuning.

Three parts, all in our own words and shipped beside this file: how well it predicts short texts about the world, how well it
predicts good answers to plain instructions, both in nats a token, and how many questions of several options it answers, taking
the option whose tokens are likeliest in the mean. Nothing is generated, so the probe costs a few forward passes.

Shapes: R items, K options.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from luthier.data.rendering import Renderer
from luthier.evaluation.candidates import Candidate, comparisons
from luthier.evaluation.forgetting.found import Forgetting
from luthier.evaluation.intervals import bootstrap_mean, wilson
from luthier.evaluation.measure import Measure
from luthier.objectives.sft import SFT
from luthier.prediction.passes import Passes, logprobs, said_of_each
from luthier.types import Choice, Completion, Example, Origin, PlainText, Record

FOLDER = Path(__file__).parent
TEXTS, INSTRUCTIONS, CHOICES = "general_text.txt", "instructions.jsonl", "choices.jsonl"

TEXT_MARGIN = 0.1
"""Nats a token: 10 % more perplexity on general text. Tuning on anything moves it by a few percent."""

ANSWER_MARGIN = 0.25
"""Nats a token: how answers are worded changes with what is tuned on, without being forgotten."""

CHOICE_MARGIN = 0.05


@dataclass(frozen=True)
class Probe:
    """Texts, instructions with answers, and questions with options."""

    texts: tuple[PlainText, ...]
    instructions: tuple[Completion, ...]
    questions: tuple[Choice, ...]


def read_probe() -> Probe:
    """The probe that ships with the package."""
    lines = (FOLDER / TEXTS).read_text("utf-8").splitlines()
    answers, questions = (
        [json.loads(line) for line in (FOLDER / name).read_text("utf-8").splitlines()]
        for name in (INSTRUCTIONS, CHOICES)
    )
    return Probe(
        tuple(PlainText(line) for line in lines),
        tuple(Completion(row["prompt"], row["completion"]) for row in answers),
        tuple(Choice(row["question"], tuple(row["options"]), row["answer"]) for row in questions),
    )


def forgetting(candidates: Sequence[Candidate], renderer: Renderer, passes: Passes, probe: Probe) -> Forgetting:
    """What candidates know beyond the rows; the first is what the others are compared with.

    Encoder-decoders are given no plain texts, which they cannot continue. What is too long for a model is left out and noted.
    Raises: NotFinite, if a model gives NaN.
    """
    asked = _Asked(candidates, replace(renderer, learn="answers"), passes)
    parts: list[Measure] = []
    if renderer.answer_start is None:
        losses = asked.losses(TEXTS, probe.texts)
        parts += _loss_parts("general text", losses, TEXT_MARGIN)
    parts += _loss_parts("general instructions", asked.losses(INSTRUCTIONS, probe.instructions), ANSWER_MARGIN)
    hits = _hits(asked, probe.questions)
    if hits[0]:
        shares = tuple(wilson(round(sum(hit)), len(hit)) for hit in hits)
        parts.append(Measure("general questions", True, len(hits[0]), shares, comparisons(hits), CHOICE_MARGIN))
    return Forgetting(tuple(parts), tuple(asked.notes))


def _loss_parts(name: str, losses: Sequence[Sequence[float]], margin: float) -> list[Measure]:
    """The mean of each candidate's losses over the items; none where every item was too long."""
    if not losses[0]:
        return []
    estimates = tuple(bootstrap_mean(each) for each in losses)
    return [Measure(name, False, len(losses[0]), estimates, comparisons(losses), margin, "likelihood")]


class _Asked:
    """The candidates, and what is to be said of what they could not be asked."""

    def __init__(self, candidates: Sequence[Candidate], renderer: Renderer, passes: Passes) -> None:
        self.notes: list[str] = []
        self._candidates = candidates
        self._renderer = renderer
        self._passes = replace(passes, shares_prefix=True)
        contexts = [
            each.model.context_length - each.model.num_virtual(each.adapter)
            for each in candidates
            if each.model.context_length is not None
        ]
        self._room = min(contexts, default=None)

    def losses(self, name: str, records: Sequence[Record]) -> list[list[float]]:
        """For each candidate the nats a token of the items that all have room for."""
        examples = [self.example(record, Origin(name, line)) for line, record in enumerate(records, start=1)]
        fitting = [example for example in examples if self.fits(example)]
        self.leave_out(name, len(examples) - len(fitting), len(examples))
        return [[-nats for nats in means] for means in self.mean_logprobs(name, fitting)]

    def mean_logprobs(self, name: str, examples: Sequence[Example]) -> list[list[float]]:
        """For each candidate log p a token of each example."""
        found: dict[tuple[int, str | None], list[float]] = {}  # one that is shown examples first is the same model here
        for each in self._candidates:
            if (id(each.model), each.adapter) in found:
                continue
            task = f"{each.name}: {name.partition('.')[0].replace('_', ' ')}"
            said = said_of_each(each.model, each.adapter, examples, logprobs, self._passes, task)
            found[id(each.model), each.adapter] = [float(logprob_N.mean()) for logprob_N in said]
        return [found[id(each.model), each.adapter] for each in self._candidates]

    def example(self, record: Record, origin: Origin) -> Example:
        """What is learned of a record: of a text all but its end, which is where somebody chose to stop."""
        rendered = self._renderer.render(record, origin)
        if isinstance(record, PlainText):
            weight_T = rendered.weight_T.copy()
            weight_T[-1] = 0
            rendered = replace(rendered, weight_T=weight_T)
        return SFT().example(rendered, 0, origin)

    def fits(self, example: Example) -> bool:
        """Whether all candidates have room for it."""
        return example.num_learned > 0 and (self._room is None or example.longest_stream <= self._room)

    def leave_out(self, name: str, num_left_out: int, num_all: int) -> None:
        """Note that items were left out."""
        if num_left_out:
            self.notes.append(f"{name}: {num_left_out} of {num_all} are too long for a model and were left out.")


def _hits(asked: _Asked, questions: Sequence[Choice]) -> list[list[float]]:
    """For each candidate 1 or 0 for each question, by the option whose tokens are likeliest in the mean."""
    posed = []
    for line, question in enumerate(questions, start=1):
        origin = Origin(CHOICES, line)
        options = [asked.example(Completion(question.question, option), origin) for option in question.options]
        if all(asked.fits(option) for option in options):
            posed.append((question, options))
    asked.leave_out(CHOICES, len(questions) - len(posed), len(questions))
    every = [option for _, options in posed for option in options]
    bounds = np.cumsum([0, *(len(options) for _, options in posed)])
    return [
        list(map(partial(_hit, means), posed, bounds[:-1].tolist())) for means in asked.mean_logprobs(CHOICES, every)
    ]


def _hit(means: Sequence[float], posed: tuple[Choice, list[Example]], start: int) -> float:
    question, options = posed
    own = means[start : start + len(options)]
    return float(own.index(max(own)) == question.answer)
