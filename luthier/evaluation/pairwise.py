"""Scores of answers beside what people said of them: pairs, how far the chances that they give can be trusted, and length.

Shapes: P pairs, A answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from luthier.evaluation.intervals import Estimate, bootstrap_of, wilson
from luthier.evaluation.metrics import pearson

NUM_BINS = 10
Column = NDArray[np.float64]


@dataclass(frozen=True)
class Pairs:
    """Pairs of answers of which people find one better, or both as good; the better one is the first.

    gap_P: how much higher the first's raw score is. probability_P: how often it is taken for the better one, ½ or more.
    letters_P: how many more letters it has. row_P: the row that a pair is of.
    """

    gap_P: Column
    probability_P: Column
    letters_P: Column
    row_P: NDArray[np.int64]

    @property
    def is_ordered_P(self) -> NDArray[np.bool_]:
        """Whether one is better: ties say nothing of who is right."""
        ordered: NDArray[np.bool_] = self.probability_P > 0.5
        return ordered

    @property
    def ordered(self) -> Pairs:
        """Those of which one is better."""
        at = self.is_ordered_P
        return Pairs(self.gap_P[at], self.probability_P[at], self.letters_P[at], self.row_P[at])


def hits(gap_P: Column) -> Column:
    """1 where the first is higher, 0 where it is lower, ½ where both are the same."""
    right: Column = (np.sign(gap_P) + 1) / 2
    return right


def pair_losses(gap_P: Column, probability_P: Column) -> Column:
    """− p log σ(gap) − (1 − p) log σ(−gap), nats."""
    loss: Column = np.logaddexp(0, -gap_P) * probability_P + np.logaddexp(0, gap_P) * (1 - probability_P)
    return loss


@dataclass(frozen=True)
class Bin:
    """Pairs, or orders of pairs, that are alike: how many, the mean of what they are alike in, and how often it was right there."""

    low: float
    high: float
    count: int
    mean: float
    right: float


def reliability(gap_P: Column, probability_P: Column, num_bins: int = NUM_BINS) -> tuple[Bin, ...]:
    """Bins of the chance σ(gap) that the scores give, with how often it came so. Each pair counts in both orders.

    Bins without pairs are left out. Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 2.
    """
    chance_P = _sigmoid(gap_P)
    chance, came = np.concatenate([chance_P, 1 - chance_P]), np.concatenate([probability_P, 1 - probability_P])
    place = np.minimum((chance * num_bins).astype(np.int64), num_bins - 1)
    found = []
    for index in range(num_bins):
        at = place == index
        if at.any():
            low, high = index / num_bins, (index + 1) / num_bins
            found.append(Bin(low, high, int(at.sum()), float(chance[at].mean()), float(came[at].mean())))
    return tuple(found)


def calibration_error(gap_P: Column, probability_P: Column) -> float:
    """The mean distance of chance and frequency over those bins (ECE: Guo et al., equation 3)."""
    bins = reliability(gap_P, probability_P)
    return sum(each.count * abs(each.mean - each.right) for each in bins) / sum(each.count for each in bins)


def calibration(pairs: Pairs) -> Estimate:
    """The calibration error with its interval over pairs."""
    return bootstrap_of(
        lambda index_P: calibration_error(pairs.gap_P[index_P], pairs.probability_P[index_P]), len(pairs.gap_P)
    )


def histogram(gap_P: Column, num_bins: int = 2 * NUM_BINS) -> tuple[tuple[float, float, int], ...]:
    """From which gap to which, and how many pairs have one between; from the smallest gap to the largest."""
    counts, edges = np.histogram(gap_P, bins=num_bins)
    return tuple(zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True))


@dataclass(frozen=True)
class ByLength:
    """Pairs whose better answer is longer by so many letters (shorter, where below 0), and how often it has the higher score."""

    low: float
    high: float
    count: int
    accuracy: Estimate


def by_length(pairs: Pairs, num_bins: int = NUM_BINS) -> tuple[ByLength, ...]:
    """Pairs of which one is better, in bins of about as many pairs each by how much longer the better answer is."""
    ordered = pairs.ordered
    right_P, order = hits(ordered.gap_P), np.argsort(ordered.letters_P, kind="stable")
    cut = [part for part in np.array_split(order, min(num_bins, max(1, len(order) // 5))) if len(part)]
    return tuple(
        ByLength(
            float(ordered.letters_P[part[0]]),
            float(ordered.letters_P[part[-1]]),
            len(part),
            wilson(round(float(right_P[part].sum())), len(part)),
        )
        for part in cut
    )


@dataclass(frozen=True)
class LengthBias:
    """How far scores go by length. None where no pair is of that kind.

    longer_is_better: how often the better answer is the longer one, of pairs of different length. when_longer, when_shorter: how often
    it has the higher score there. of_scores: the correlation of score and letters over answers; of_gaps: of gap and letters more,
    over pairs, each in both orders.
    """

    longer_is_better: Estimate | None
    when_longer: Estimate | None
    when_shorter: Estimate | None
    of_scores: float
    of_gaps: float


def length_bias(pairs: Pairs, score_A: Column, letters_A: Column) -> LengthBias:
    """How far scores go by length, over all answers and over pairs of which one is better."""
    ordered = pairs.ordered
    right_P = hits(ordered.gap_P)
    is_longer, is_shorter = ordered.letters_P > 0, ordered.letters_P < 0
    gaps, more = (np.concatenate([each, -each]) for each in (ordered.gap_P, ordered.letters_P))
    return LengthBias(
        _share(is_longer[is_longer | is_shorter].astype(np.float64)),
        _share(right_P[is_longer]),
        _share(right_P[is_shorter]),
        pearson(score_A, letters_A),
        pearson(gaps, more),
    )


def _share(right: Column) -> Estimate | None:
    return wilson(round(float(right.sum())), len(right)) if len(right) else None


def _sigmoid(x: Column) -> Column:
    chance: Column = np.exp(-np.logaddexp(0, -x))
    return chance


def by_row(values_P: Column, row_P: NDArray[np.int64]) -> tuple[Sequence[float], Sequence[float]]:
    """The mean over each row's pairs, and how many it has: rows are what is drawn anew, as pairs of one are not independent."""
    _, place_P, count_R = np.unique(row_P, return_inverse=True, return_counts=True)
    return (np.bincount(place_P, values_P) / count_R).tolist(), count_R.astype(np.float64).tolist()
