"""How much better than expected an answer, or one of its tokens, was.

Pure functions over one answer (T tokens) or one prompt's answers (G). An answer without a reward is NaN: it takes no part in any
mean, and its advantage is 0. Everything is computed in double precision.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

_EPSILON_GROUP = 1e-4
_EPSILON_WHITE = 1e-8


def gae(reward_T: Numbers, value_T: Numbers, gamma: float, lam: float) -> tuple[Numbers, Numbers]:
    """Generalized advantage estimation: Schulman et al. 2015, https://arxiv.org/abs/1506.02438, equation 16.

        δ_t = r_t + γ V_{t+1} − V_t,    A_t = δ_t + γ λ A_{t+1},    G_t = A_t + V_t

    with nothing after the last token, whatever ended the answer.

    Returns: A and G, each shape (T,).
    """
    next_T = np.append(value_T[1:], 0.0)
    delta_T = reward_T + gamma * next_T - value_T
    advantage_T = np.zeros_like(delta_T)
    following = 0.0
    for at in range(len(delta_T) - 1, -1, -1):
        following = delta_T[at] + gamma * lam * following
        advantage_T[at] = following
    return advantage_T, advantage_T + value_T


def rewards_to_go(reward_T: Numbers) -> Numbers:
    """Σ_{k ≥ t} r_k of each token, shape (T,)."""
    summed_T: Numbers = np.cumsum(reward_T[::-1])[::-1].copy()
    return summed_T


def leave_one_out(reward_G: Numbers) -> Numbers:
    """R_i − mean_{j ≠ i} R_j: Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740, equation 8; 0 for an answer that is alone."""
    known_G = ~np.isnan(reward_G)
    count = int(known_G.sum())
    if count < 2:
        return np.zeros_like(reward_G)
    mean = reward_G[known_G].mean()
    return np.where(known_G, (reward_G - mean) * count / (count - 1), 0.0)


def centred(reward_G: Numbers) -> Numbers:
    """R_i − mean_j R_j."""
    known_G = ~np.isnan(reward_G)
    return np.where(known_G, reward_G - reward_G[known_G].mean(), 0.0) if known_G.any() else np.zeros_like(reward_G)


def group_relative(reward_G: Numbers) -> Numbers:
    """(R_i − mean R) / (std R + 10⁻⁴), std with G − 1: Shao et al. 2024, https://arxiv.org/abs/2402.03300, section 4.1.2."""
    known = reward_G[~np.isnan(reward_G)]
    if len(known) < 2:
        return np.zeros_like(reward_G)
    scaled_G: Numbers = centred(reward_G) / (known.std(ddof=1) + _EPSILON_GROUP)
    return scaled_G


def whitened(parts: Sequence[Numbers], *, keeps_mean: bool = False) -> list[Numbers]:
    """Numbers of several answers with mean 0 (or their own, if it is kept) and variance 1 over all of them.

    The variance is the unbiased one, plus 10⁻⁸.
    """
    every = np.concatenate(parts)
    if len(every) < 2:
        return [np.zeros_like(part) if not keeps_mean else part for part in parts]
    mean, scale = every.mean(), 1 / np.sqrt(every.var(ddof=1) + _EPSILON_WHITE)
    return [(part - mean) * scale + (mean if keeps_mean else 0.0) for part in parts]
