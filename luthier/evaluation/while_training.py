"""What the model answers to held-out rows while it is trained, by the named metrics; nothing of the training depends on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from luthier.data.rendering import Renderer
from luthier.errors import DataError, NotFinite
from luthier.evaluation.answer_curves import PREFIX
from luthier.evaluation.compare import Candidate, Question, check_room, questions_of
from luthier.evaluation.named_metrics import named_measure
from luthier.generation.engine import Request, generate
from luthier.generation.settings import Sampling
from luthier.training.loop import autocast
from luthier.training.settings import GeneratedMetrics
from luthier.types import Origin, Record


@dataclass(frozen=True)
class AnswerMetrics:
    """What is asked and measured, and how it is computed. compute_in: as training computes matrix products."""

    candidate: Candidate
    questions: tuple[Question, ...]
    stop_ids: frozenset[int]
    settings: GeneratedMetrics
    compute_in: torch.dtype | None = None

    def measured(self) -> dict[str, float]:
        """Each metric of the answers that the model gives as it is, greedily, by its name in metrics.jsonl. Raises: NotFinite."""
        model = self.candidate.model
        sampling = Sampling(max_new_tokens=self.settings.max_new_tokens)
        requests = [
            Request(question.prompt, sampling, self.candidate.adapter, self.stop_ids) for question in self.questions
        ]
        # the cache of the trunk knows the training's rows by their numbers, and these are none of them
        cache, model.trunk_cache = model.trunk_cache, None
        try:
            with autocast(model.device, self.compute_in):
                answers = [answer.text for answer in generate(model, requests)]
        finally:
            model.trunk_cache = cache
        return self._of(answers)

    def _of(self, answers: Sequence[str]) -> dict[str, float]:
        references = [question.references for question in self.questions]
        found = {}
        for name in self.settings.metrics:
            value = named_measure(name, [answers], references)[0].estimates[0].value
            if not math.isfinite(value):
                raise NotFinite(f"The metric {name!r} of the answers to held-out rows is {value}.", "Leave it out.")
            found[f"{PREFIX}{name}"] = value
        return found

    def check(self) -> None:
        """Raise before the first step what the first evaluation would: DataError where nothing can be asked or measured; UsageError
        where a metric's library is not installed."""
        if not self.questions:
            raise DataError(
                "None of the held-out rows that training.evaluate_generated takes has an answer in text.",
                "Give data.validation rows with answers, or take training.evaluate_generated out.",
                field="training.evaluate_generated",
            )
        check_room(self.candidate, self.questions, ())
        self._of([question.reference for question in self.questions])


def answer_metrics(
    settings: GeneratedMetrics,
    candidate: Candidate,
    records: Sequence[tuple[Record, Origin]],
    renderer: Renderer,
    compute_in: torch.dtype | None,
) -> AnswerMetrics:
    """The metrics of the first so many held-out rows, checked. Raises as `check`."""
    questions = tuple(questions_of(records[: settings.rows], renderer))
    found = AnswerMetrics(candidate, questions, renderer.stop_ids, settings, compute_in)
    found.check()
    return found
