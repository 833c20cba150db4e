"""Bradley–Terry strengths with intervals over questions.

Bradley and Terry 1952, https://doi.org/10.2307/2334029: system i is better than j with probability σ(θ_i − θ_j). The
strengths are those of greatest likelihood, whatever the order of the games; a tie counts as half a win for each. They are
said on Elo's scale, r = 1000 + 400 / ln 10 · θ with mean 1000. A weak prior, θ ~ N(0, 1000 points), keeps a system
finite that won or lost all its games, and moves the others by less than a point where there are hundreds.

The intervals draw whole questions anew (all judgments of a question together, because they are not independent).

Shapes: B bootstrap draws, Q questions, M systems.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from luthier.evaluation.intervals import CONFIDENCE, Estimate
from luthier.evaluation.judged.elo import SCALE, START
from luthier.evaluation.judged.judgments import Judgment

POINTS = SCALE / math.log(10)
"""Elo points of one unit of θ."""
PRIOR_POINTS = 1000.0
RESAMPLES = 1000
_MOST_STEPS = 100


def bradley_terry(
    judgments: Sequence[Judgment], *, resamples: int = RESAMPLES, confidence: float = CONFIDENCE, seed: int = 0
) -> dict[str, Estimate]:
    """The strength of each system on Elo's scale, with its interval over questions."""
    names = sorted({name for one in judgments for name in (one.first, one.second)})
    wins_QMM = wins_by_question(judgments, names)
    num_questions = len(wins_QMM)
    theta_M = strengths(wins_QMM.sum(0, keepdims=True))[0]
    drawn_BQ = np.random.default_rng(seed).multinomial(num_questions, [1 / num_questions] * num_questions, resamples)
    drawn_BM = strengths(np.einsum("bq,qij->bij", drawn_BQ, wins_QMM))
    low_M, high_M = np.quantile(drawn_BM, [0.5 - confidence / 2, 0.5 + confidence / 2], axis=0)
    ratings = (START + POINTS * np.stack([theta_M, low_M, high_M], 1)).tolist()
    return {name: Estimate(*rating) for name, rating in zip(names, ratings, strict=True)}


def wins_by_question(judgments: Sequence[Judgment], names: Sequence[str]) -> NDArray[np.float64]:
    """How often system i was better than j on each question, ties as a half for each; (Q, M, M)."""
    place = {name: index for index, name in enumerate(names)}
    question = {key: index for index, key in enumerate(dict.fromkeys(one.question for one in judgments))}
    wins_QMM = np.zeros((len(question), len(names), len(names)))
    for one in judgments:
        here, first, second = question[one.question], place[one.first], place[one.second]
        wins_QMM[here, first, second] += one.outcome
        wins_QMM[here, second, first] += 1 - one.outcome
    return wins_QMM


def strengths(wins_BMM: NDArray[np.float64]) -> NDArray[np.float64]:
    """θ of greatest posterior for each table of wins, (B, M), by Newton's method; their mean is 0."""
    num_tables, num_systems = wins_BMM.shape[:2]
    games_BMM = wins_BMM + wins_BMM.transpose(0, 2, 1)
    precision = (POINTS / PRIOR_POINTS) ** 2
    theta_BM = np.zeros((num_tables, num_systems))
    eye_MM = np.eye(num_systems)
    for _ in range(_MOST_STEPS):
        better_BMM = 1 / (1 + np.exp(-(theta_BM[:, :, None] - theta_BM[:, None, :])))
        slope_BM = (wins_BMM - games_BMM * better_BMM).sum(2) - precision * theta_BM
        weight_BMM = games_BMM * better_BMM * (1 - better_BMM)
        curve_BMM = eye_MM * (weight_BMM.sum(2) + precision)[:, None, :] - weight_BMM
        step_BM = np.linalg.solve(curve_BMM, slope_BM[..., None])[..., 0]
        # A step of more than two units leaves the region where the curve is a parabola.
        theta_BM += step_BM * np.minimum(1, 2 / np.maximum(np.abs(step_BM).max(1, keepdims=True), 1e-12))
        if np.abs(step_BM).max() < 1e-10:
            break
    centred: NDArray[np.float64] = theta_BM - theta_BM.mean(1, keepdims=True)
    return centred


def groups(judgments: Sequence[Judgment]) -> list[tuple[str, ...]]:
    """The systems in groups that are joined by games; ratings of different groups cannot be compared."""
    group = {name: {name} for one in judgments for name in (one.first, one.second)}
    for one in judgments:
        if group[one.first] is not group[one.second]:
            joined = group[one.first] | group[one.second]
            group.update(dict.fromkeys(joined, joined))
    return sorted({tuple(sorted(names)) for names in group.values()})


def unbounded(judgments: Sequence[Judgment]) -> tuple[list[str], list[str]]:
    """The systems that gave no point away in any game, and those that made none: their strength has no bound but the prior's."""
    points: dict[str, list[float]] = {}
    for one in judgments:
        points.setdefault(one.first, []).append(one.outcome)
        points.setdefault(one.second, []).append(1 - one.outcome)
    names = sorted(points)
    return [name for name in names if min(points[name]) == 1], [name for name in names if max(points[name]) == 0]
