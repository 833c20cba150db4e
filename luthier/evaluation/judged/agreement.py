"""Whether judges agree beyond chance, and whether rankings do.

N items, J judges, C classes of verdicts.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray


def agreement(left_N: Sequence[Hashable], right_N: Sequence[Hashable]) -> float:
    """The share of items on which two judges say the same. Needs an item."""
    return sum(a == b for a, b in zip(left_N, right_N, strict=True)) / len(left_N)


def cohen_kappa(left_N: Sequence[Hashable], right_N: Sequence[Hashable]) -> float:
    """κ = (p_o − p_e) / (1 − p_e) of two judges: Cohen 1960, https://doi.org/10.1177/001316446002000104.

    p_e is how often they would agree had each given their own verdicts at random. 1 where both gave one verdict only and it
    is the same, because there is nothing to disagree about.
    """
    observed = agreement(left_N, right_N)
    classes = sorted({*left_N, *right_N}, key=repr)
    shares = [[side.count(name) / len(side) for name in classes] for side in (list(left_N), list(right_N))]
    expected = sum(a * b for a, b in zip(*shares, strict=True))
    return 1.0 if expected == 1 else (observed - expected) / (1 - expected)


def fleiss_kappa(counts_NC: NDArray[np.int64]) -> float:
    """κ of as many judges on each item, whoever they are: Fleiss 1971, https://doi.org/10.1037/h0031619.

    counts_NC: how many judges gave item n the verdict c; each row has the same sum, 2 or more.
    """
    num_judges = int(counts_NC[0].sum())
    assert num_judges >= 2
    assert (counts_NC.sum(1) == num_judges).all()
    observed = ((counts_NC**2).sum(1) - num_judges).mean() / (num_judges * (num_judges - 1))
    expected = float(((counts_NC.sum(0) / counts_NC.sum()) ** 2).sum())
    return 1.0 if expected == 1 else float((observed - expected) / (1 - expected))


def kendall_tau(left_M: Sequence[float], right_M: Sequence[float]) -> float:
    """τ-b of two ratings of the same systems: Kendall 1945, https://doi.org/10.1093/biomet/33.3.239; 0 where one is constant.

    Pairs that both put in the same order minus those in the other, over the geometric mean of the pairs each tells apart.
    """
    left, right = np.asarray(left_M, dtype=np.float64), np.asarray(right_M, dtype=np.float64)
    above = np.triu_indices(len(left), 1)
    left_P, right_P = (np.sign(side[:, None] - side[None, :])[above] for side in (left, right))
    told_apart = float(np.abs(left_P).sum() * np.abs(right_P).sum())
    return float((left_P * right_P).sum() / np.sqrt(told_apart)) if told_apart else 0.0
