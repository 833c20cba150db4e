"""How well a model tells classes apart, against always giving the same answer.

A base model whose head is new cannot tell classes apart at all, so what the tuned model is compared with is the best that
needs no text: the most frequent class of the rows as the answer, and their shares as the probabilities.
Shapes: R rows, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from luthier.evaluation.candidates import Candidate, comparisons, head_logits
from luthier.evaluation.intervals import wilson
from luthier.evaluation.loss_by_row import mean_loss
from luthier.evaluation.measure import Measure
from luthier.evaluation.metrics import macro_f1
from luthier.evaluation.rows import Rows, calibration_measure, statistic_measure
from luthier.evaluation.verdict import Answered, Evaluation
from luthier.prediction.passes import Passes
from luthier.types import FloatArray, IntArray, Labelled, Record

MAJORITY = "majority"


@dataclass(frozen=True)
class Guesses:
    """What one candidate says of the rows: log-probabilities of all classes (nats)."""

    name: str
    logprob_RC: FloatArray

    @property
    def answer_R(self) -> IntArray:
        """The most probable class of each row."""
        answers: IntArray = self.logprob_RC.argmax(1).astype(np.int64)
        return answers


def evaluate_classes(
    candidates: Sequence[Candidate], rows: Rows, passes: Passes, limit: int | None = None
) -> Evaluation:
    """The candidates, which have the same classes, against the majority class: loss, accuracy and macro-F1.

    limit: use only the first so many rows. Raises: DataError, if there are no rows, or one is beyond a model's context.
    """
    rows = rows.first(limit)
    classes = candidates[0].model.classes
    true_R = np.array([int(example.token_N[0]) for example in rows.examples], dtype=np.int64)
    said = head_logits(candidates, rows.examples, passes, "classes")
    guesses = [
        majority(true_R, len(classes)),
        *(
            Guesses(each.name, torch.cat(logits).log_softmax(-1).numpy())
            for each, logits in zip(candidates, said, strict=True)
        ),
    ]
    most = classes[int(guesses[0].answer_R[0])]
    note = (
        f"{MAJORITY} always answers {most!r}, the most frequent class of these rows; a base with a new head knows none."
    )
    return Evaluation(
        candidates=tuple(guess.name for guess in guesses),
        num_rows=len(true_R),
        measures=(
            *class_measures(guesses, true_R),
            calibration_measure([list(guess.logprob_RC) for guess in guesses], true_R.tolist()),
        ),
        notes=(*rows.notes, note),
        answers=tuple(
            Answered(
                origin, _asked(record), classes[true], tuple(classes[int(guess.answer_R[row])] for guess in guesses)
            )
            for row, ((record, origin), true) in enumerate(zip(rows.records, true_R.tolist(), strict=True))
        ),
    )


def _asked(record: Record) -> str:
    assert isinstance(record, Labelled)
    return record.text if record.pair is None else f"{record.text} | {record.pair}"


def majority(true_R: IntArray, num_classes: int) -> Guesses:
    """The same answer for every row: the shares of the classes among the rows."""
    with np.errstate(divide="ignore"):  # a class without rows has probability 0
        share_C = np.log(np.bincount(true_R, minlength=num_classes) / len(true_R))
    return Guesses(MAJORITY, np.tile(share_C.astype(np.float32), (len(true_R), 1)))


def class_measures(guesses: Sequence[Guesses], true_R: IntArray) -> tuple[Measure, ...]:
    """Loss (nats a row), accuracy and macro-F1 of each candidate, each later one against the first."""
    rows, num_classes = np.arange(len(true_R)), guesses[0].logprob_RC.shape[1]
    losses = [(-guess.logprob_RC[rows, true_R]).astype(np.float64).tolist() for guess in guesses]
    right = [(guess.answer_R == true_R).astype(np.float64).tolist() for guess in guesses]

    def f1_of(guess: Guesses, index_R: IntArray) -> float:
        return macro_f1(guess.answer_R[index_R], true_R[index_R], num_classes)

    return (
        mean_loss(losses),
        Measure("accuracy", True, len(true_R), tuple(wilson(round(sum(r)), len(r)) for r in right), comparisons(right)),
        statistic_measure("macro-F1", [partial(f1_of, guess) for guess in guesses], len(true_R)),
    )
