"""Bounds on what counts may come to by chance: seven in a million draws as far off as these would be a surprise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

DRAWS = 100_000
"""How often a distribution is drawn from."""

SURPRISE = 4.5
"""Standard deviations of a normal number."""


def assert_binomial(count: float, trials: int, probability: float) -> None:
    """So many of the trials came out, as independent ones of that probability would."""
    spread = math.sqrt(trials * probability * (1 - probability))
    assert abs(count - trials * probability) <= SURPRISE * spread, (count, trials * probability, spread)


def assert_as_likely(counts: Sequence[int], probabilities: Sequence[float] | None = None) -> None:
    """Counts of outcomes of those probabilities (without them: equal ones), by Pearson's chi-square."""
    found = np.asarray(counts, dtype=np.float64)
    shares = np.full(len(found), 1 / len(found)) if probabilities is None else np.asarray(probabilities)
    expected = found.sum() * shares / shares.sum()
    assert expected.min() >= 5, "too few draws for the approximation"
    statistic = float(((found - expected) ** 2 / expected).sum())
    assert statistic <= chi_square_bound(len(found) - 1), (statistic, counts)


def chi_square_bound(degrees: int) -> float:
    """What a chi-square number of so many degrees hardly ever passes, by Wilson and Hilferty's cube."""
    share = 2 / (9 * degrees)
    return degrees * (1 - share + SURPRISE * math.sqrt(share)) ** 3
