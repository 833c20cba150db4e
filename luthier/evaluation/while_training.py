"""What the model answers to held-out rows while it is trained, by the named metrics; nothing of the training depends on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from luthier.data.rendering import Renderer
from luthier.errors import DataError, NotFinite, UsageError
from luthier.evaluation.answer_curves import PREFIX, is_free
from luthier.evaluation.candidates import Candidate
from luthier.evaluation.compare import Question, check_room, questions_of
from luthier.evaluation.graded import Grading, columns_of, measured
from luthier.evaluation.grading import Grader
from luthier.evaluation.measure import Measure
from luthier.evaluation.named_metrics import named_measure
from luthier.evaluation.verdict import Answered
from luthier.generation.engine import Request, generate
from luthier.generation.settings import Sampling
from luthier.training.loop import autocast
from luthier.training.settings import GeneratedMetrics
from luthier.types import Origin, Record


@dataclass(frozen=True)
class AnswerMetrics:
    """What is asked, what measures the answers, and how they are computed. compute_in: as training computes matrix products."""

    candidate: Candidate
    questions: tuple[Question, ...]
    stop_ids: frozenset[int]
    settings: GeneratedMetrics
    grading: Grading
    compute_in: torch.dtype | None = None

    def measured(self) -> dict[str, float]:
        """Each metric of the answers that the model gives as it is, greedily, by its name in metrics.jsonl.

        Raises: NotFinite; DataError, where a grader has no score for any of them.
        """
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
        measures: dict[str, Measure] = {
            name: named_measure(name, [answers], references)[0] for name in self.settings.metrics
        }
        answered = [
            Answered(question.origin, question.asked, question.reference, (answer,), question.others)
            for question, answer in zip(self.questions, answers, strict=True)
        ]
        measures |= {grader.name: measured(grader, self.grading, answered)[0] for grader in self.grading.graders}
        values = {name: measure.estimates[0].value for name, measure in measures.items()}
        for name, value in values.items():
            if not math.isfinite(value):
                raise NotFinite(f"The metric {name!r} of the answers to held-out rows is {value}.", "Leave it out.")
        return {f"{PREFIX}{name}": value for name, value in values.items()}

    def check(self) -> None:
        """Raise before the first step what the first evaluation would: DataError where nothing can be asked or measured; UsageError
        where a metric's library is not installed, or a grader is none that can be asked here."""
        if not self.questions:
            raise DataError(
                "None of the held-out rows that training.evaluate_generated takes has an answer in text.",
                "Give data.validation rows with answers, or take training.evaluate_generated out.",
                field="training.evaluate_generated",
            )
        for grader in self.grading.graders:
            self._check_grader(grader)
        check_room(self.candidate, self.questions, ())
        self._of([question.reference for question in self.questions])

    def _check_grader(self, grader: Grader) -> None:
        field = "training.evaluate_generated.graders"
        if grader.asks_model:
            raise UsageError(
                f"The grader {grader.name!r} asks a model that judges, and there is none beside the one that trains.",
                "Take it out, and have it measure the finished run: luthier evaluate RUN --grader FILE --judge MODEL.",
                field=field,
            )
        if grader.name in self.settings.metrics or not is_free(grader.name):
            raise UsageError(
                f"The grader {grader.name!r} is called as another curve of the run is.",
                "Give it another name.",
                field=field,
            )


def answer_metrics(
    settings: GeneratedMetrics,
    graders: Sequence[Grader],
    candidate: Candidate,
    records: Sequence[tuple[Record, Origin]],
    renderer: Renderer,
    compute_in: torch.dtype | None,
) -> AnswerMetrics:
    """The metrics of the first so many held-out rows, checked. Raises as `check`."""
    questions = tuple(questions_of(records[: settings.rows], renderer))
    columns = columns_of(question.origin for question in questions) if graders else {}
    grading = Grading(graders, columns=columns)
    found = AnswerMetrics(candidate, questions, renderer.stop_ids, settings, grading, compute_in)
    found.check()
    return found
