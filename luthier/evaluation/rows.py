"""The rows that models are measured on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from luthier.errors import DataError
from luthier.evaluation.intervals import RESAMPLES, bootstrap_p, draws_of, percentile_interval
from luthier.evaluation.measure import SCORE_MARGIN, Comparison, Measure, Witness
from luthier.evaluation.metrics import expected_calibration_error
from luthier.types import Example, FloatArray, IntArray, Origin, Record


@dataclass(frozen=True)
class Rows:
    """Rows with their places, and what each teaches, aligned. notes: what is to be said of them."""

    records: Sequence[tuple[Record, Origin]]
    examples: Sequence[Example]
    notes: tuple[str, ...] = ()

    def first(self, limit: int | None) -> Rows:
        """The first so many rows that teach something; None takes all. Raises: DataError, if there are none."""
        if not self.records:
            raise DataError("There are no rows to evaluate on.", "Give a file that holds at least one row.")
        chosen = list(zip(self.records, self.examples, strict=True))[:limit]
        kept = [(record, example) for record, example in chosen if example.num_learned]
        notes = list(self.notes)
        if len(chosen) < len(self.records):
            notes.append(f"The first {len(chosen)} of {len(self.records)} rows were used.")
        if len(kept) < len(chosen):
            notes.append(f"{len(chosen) - len(kept)} of {len(chosen)} rows teach nothing: they do not count.")
        if not kept:
            raise DataError(
                "No row teaches anything, so there is nothing to measure.",
                "Give rows of the form that the run learned from.",
                file=chosen[0][0][1].file,
            )
        return Rows([record for record, _ in kept], [example for _, example in kept], tuple(notes))


@dataclass(frozen=True)
class Texts:
    """Which pieces are of one text: what is drawn anew is whole texts, because pieces of one are no independent rows.

    text_R: of each piece the number of its text. examples: the first piece of each text.
    """

    text_R: Tensor
    examples: Sequence[Example]

    @classmethod
    def of(cls, pieces: Sequence[Example]) -> Texts:
        """Pieces from one place are of one text."""
        number: dict[Origin, int] = {}
        firsts: list[Example] = []
        text_R = []
        for piece in pieces:
            if piece.origin not in number:
                number[piece.origin] = len(firsts)
                firsts.append(piece)
            text_R.append(number[piece.origin])
        return cls(torch.tensor(text_R), firsts)

    def summed(self, value_R: Tensor) -> Tensor:
        """The values of pieces summed over each text."""
        return value_R.new_zeros(len(self.examples)).index_add(0, self.text_R, value_R)


CALIBRATION = "calibration error"

OfRows = Callable[[IntArray], float]
"""A number that is no mean over rows, of the rows with these indices."""


def statistic_measure(
    name: str,
    of_rows: Sequence[OfRows],
    num_rows: int,
    *,
    higher_is_better: bool = True,
    witness: Witness = "answers",
    margin: float = SCORE_MARGIN,
    span: float = 1.0,
    resamples: int = RESAMPLES,
) -> Measure:
    """A measure that is a statistic of all rows: one for each candidate, each later one against the first."""
    every = np.arange(num_rows)
    values = [of(every) for of in of_rows]
    drawn = [draws_of(of, num_rows, resamples=resamples) for of in of_rows]
    estimates = tuple(percentile_interval(value, own) for value, own in zip(values, drawn, strict=True))
    with np.errstate(invalid="ignore"):  # two infinite values have no difference, which is told by NaN
        moved = [own - drawn[0] for own in drawn[1:]]
    gains = tuple(_gain(value - values[0], own) for value, own in zip(values[1:], moved, strict=True))
    return Measure(name, higher_is_better, num_rows, estimates, gains, margin, witness, span)


def _gain(difference: float, drawn: NDArray[np.float64]) -> Comparison:
    """A difference with its interval and how likely it is by chance; drawn: what it is of rows drawn anew."""
    p = bootstrap_p(difference, drawn)
    return Comparison(percentile_interval(difference, drawn), None, bootstrap_p=p)


def calibration_measure(logprobs: Sequence[Sequence[FloatArray]], right: Sequence[int]) -> Measure:
    """The expected calibration error of each candidate. logprobs: of each candidate, those of a row's classes or options.

    It tells how far the probabilities can be believed, and takes no part in the verdict: always answering the most frequent
    class is well calibrated.
    """
    of_rows = []
    for of_candidate in logprobs:
        best = [int(logprob_K.argmax()) for logprob_K in of_candidate]
        confidence_R = np.exp([float(logprob_K[k]) for logprob_K, k in zip(of_candidate, best, strict=True)])
        hit_R = np.array([float(k == true) for k, true in zip(best, right, strict=True)])
        of_rows.append(partial(_calibration, confidence_R, hit_R))
    return statistic_measure(CALIBRATION, of_rows, len(right), higher_is_better=False, witness="part")


def _calibration(confidence_R: NDArray[np.float64], hit_R: NDArray[np.float64], index_R: IntArray) -> float:
    return expected_calibration_error(confidence_R[index_R], hit_R[index_R])
