"""How sure a mean over rows is: 95 % intervals and a test, as pure functions.

N rows, each an independent draw; what is compared between two models is compared on the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 2000
_DRAWS_AT_ONCE = 2_000_000  # bounds the memory of a bootstrap over many rows


@dataclass(frozen=True)
class Estimate:
    """A mean and the interval that holds the true one with the stated confidence."""

    value: float
    low: float
    high: float


def wilson(num_right: float, num_rows: int, confidence: float = CONFIDENCE) -> Estimate:
    """The share of right rows (a row may be right by half) with its score interval: Wilson 1927,
    https://doi.org/10.1080/01621459.1927.10502953.

    Unlike the textbook interval it stays within 0 and 1, and has a width when all rows are right or all are wrong. Rows that
    are right by half vary less than others, so with them it is wider than it need be.
    """
    assert 0 <= num_right <= num_rows
    assert num_rows > 0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = num_right / num_rows
    shrink = 1 + z * z / num_rows
    centre = (share + z * z / (2 * num_rows)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / num_rows + z * z / (4 * num_rows**2))
    # At the ends the interval touches 0 or 1 exactly; rounding would put it a hair beyond.
    low = 0.0 if num_right == 0 else centre - half
    high = 1.0 if num_right == num_rows else centre + half
    return Estimate(share, low, high)


def bootstrap_mean(
    values_N: Sequence[float],
    weights_N: Sequence[float] | None = None,
    *,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Estimate:
    """The (weighted) mean over rows with its percentile interval: Efron 1979, https://doi.org/10.1214/aos/1176344552.

    Whole rows are drawn anew with replacement, each bringing its weight: for a loss per token, values are the rows'
    means and weights their numbers of tokens.
    """
    values, weights = _columns(values_N, weights_N)
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    at_once = max(1, _DRAWS_AT_ONCE // len(values))
    for start in range(0, resamples, at_once):
        rows = generator.integers(len(values), size=(min(at_once, resamples - start), len(values)))
        drawn = weights[rows]
        means[start : start + len(rows)] = (values[rows] * drawn).sum(1) / drawn.sum(1)
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Estimate(float((values * weights).sum() / weights.sum()), float(low), float(high))


def bootstrap_difference(
    before_N: Sequence[float],
    after_N: Sequence[float],
    weights_N: Sequence[float] | None = None,
    *,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Estimate:
    """The mean of after minus before on the same rows, with its percentile interval.

    Pairing the rows leaves out what makes rows hard or easy for both, so the interval is narrower than two apart.
    """
    differences = [after - before for before, after in zip(before_N, after_N, strict=True)]
    return bootstrap_mean(differences, weights_N, seed=seed, confidence=confidence, resamples=resamples)


def bootstrap_of(
    statistic: Callable[[NDArray[np.int64]], float],
    num_rows: int,
    *,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Estimate:
    """A number that is no mean over rows, given the rows' indices, with the percentile interval of a bootstrap."""
    drawn = draws_of(statistic, num_rows, seed=seed, resamples=resamples)
    return percentile_interval(statistic(np.arange(num_rows)), drawn, confidence=confidence)


def draws_of(
    statistic: Callable[[NDArray[np.int64]], float], num_rows: int, *, seed: int = 0, resamples: int = RESAMPLES
) -> NDArray[np.float64]:
    """What the statistic is of rows drawn anew, each time; the same rows for the same seed, whatever the statistic."""
    generator = np.random.default_rng(seed)
    return np.array([statistic(generator.integers(num_rows, size=num_rows)) for _ in range(resamples)])


def percentile_interval(value: float, drawn: NDArray[np.float64], *, confidence: float = CONFIDENCE) -> Estimate:
    """A value with the interval that holds the middle of what was drawn."""
    low, high = np.quantile(drawn, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Estimate(value, float(low), float(high))


def bootstrap_p(difference: float, drawn: NDArray[np.float64]) -> float:
    """How likely so large a difference is by chance, two-sided, from what it is of rows drawn anew.

    It is twice the share of draws on the other side of 0 (or at it), but no less than what a normal law of their spread gives:
    a few draws cannot tell how thin their tail is. 1 for draws that are not all finite.
    """
    if not np.isfinite(drawn).all() or not math.isfinite(difference):
        return 1.0
    crossed = float((drawn <= 0).mean() if difference > 0 else (drawn >= 0).mean())
    spread = float(drawn.std())
    normal = 0.0 if spread == 0 else 2 * NormalDist().cdf(-abs(difference) / spread)
    return 1.0 if difference == 0 else min(1.0, max(2 * crossed, normal))


def sign_test(differences_N: Sequence[float]) -> float:
    """How likely so uneven a number of rises and falls is if both are as likely: two-sided, exact; ties are left out.

    The time is linear in the number of rows.
    """
    rises = sum(difference > 0 for difference in differences_N)
    falls = sum(difference < 0 for difference in differences_N)
    num, fewer = rises + falls, min(rises, falls)
    # each binomial from the one before, in logarithms: the binomials themselves have thousands of digits
    log_each_K = np.cumsum([0.0, *(math.log((num - k) / (k + 1)) for k in range(fewer))]) - num * math.log(2)
    return min(1.0, 2 * float(np.exp(log_each_K).sum()))


def _columns(
    values_N: Sequence[float], weights_N: Sequence[float] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values = np.asarray(values_N, dtype=np.float64)
    weights = np.ones_like(values) if weights_N is None else np.asarray(weights_N, dtype=np.float64)
    assert len(values) == len(weights) > 0
    return values, weights
