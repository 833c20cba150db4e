"""Elo ratings, as the mean over many orders of the games.

Elo 1978. After a game of systems i and j with outcome s (1, 0.5 or 0 for i), with E = 1 / (1 + 10^((r_j − r_i) / 400)):

    r_i ← r_i + K (s − E),    r_j ← r_j − K (s − E)

One order of the games gives one table and another order another (a spread of some 40 points at K = 32); QLoRA (Dettmers et
al. 2023, https://arxiv.org/abs/2305.14314, section 5) therefore takes the mean over 10,000 random orders. What is left is
noise of the orders alone, which says nothing about other questions: for that see `bradley_terry`.

Shapes: R orders, G games, M systems.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from luthier.evaluation.judged.judgments import Judgment

START, K_FACTOR, SCALE = 1000.0, 32.0, 400.0
ORDERS = 10_000
_AT_ONCE = 2_000  # orders played together: bounds the memory


@dataclass(frozen=True)
class EloRating:
    """The mean rating over orders, and the spread (standard deviation) of one order's."""

    mean: float
    spread: float


def elo(
    judgments: Sequence[Judgment], *, orders: int = ORDERS, k_factor: float = K_FACTOR, seed: int = 0
) -> dict[str, EloRating]:
    """The rating of each system; each judgment is a game."""
    names = sorted({name for one in judgments for name in (one.first, one.second)})
    place = {name: index for index, name in enumerate(names)}
    first_G = np.array([place[one.first] for one in judgments])
    second_G = np.array([place[one.second] for one in judgments])
    outcome_G = np.array([one.outcome for one in judgments])
    generator = np.random.default_rng(seed)
    parts = []
    for start in range(0, orders, _AT_ONCE):
        num = min(_AT_ONCE, orders - start)
        order_RG = generator.permuted(np.tile(np.arange(len(judgments), dtype=np.int32), (num, 1)), axis=1)
        parts.append(ratings_after(first_G, second_G, outcome_G, order_RG, len(names), k_factor))
    rating_RM = np.concatenate(parts)
    means, spreads = rating_RM.mean(0), rating_RM.std(0)
    return {name: EloRating(float(means[i]), float(spreads[i])) for name, i in place.items()}


def ratings_after(
    first_G: NDArray[np.int64],
    second_G: NDArray[np.int64],
    outcome_G: NDArray[np.float64],
    order_RG: NDArray[np.int32],
    num_systems: int,
    k_factor: float = K_FACTOR,
) -> NDArray[np.float64]:
    """The ratings after all games, (R, M), each row of `order_RG` being an order in which they are played."""
    rating_RM = np.full((len(order_RG), num_systems), START)
    row_R = np.arange(len(order_RG))
    for game_R in order_RG.T:
        first_R, second_R = first_G[game_R], second_G[game_R]
        behind_R = rating_RM[row_R, second_R] - rating_RM[row_R, first_R]
        gain_R = k_factor * (outcome_G[game_R] - 1 / (1 + 10 ** (behind_R / SCALE)))
        rating_RM[row_R, first_R] += gain_R
        rating_RM[row_R, second_R] -= gain_R
    return rating_RM
