"""Losses of scores that should rank answers, as pure functions.

Shapes: B prompts, K answers of a prompt (those of a prompt with fewer are not there), N answers of a batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.types import Targets


def bradley_terry(gap: Tensor, probability: Tensor | float = 1.0, noise: float = 0.0) -> Tensor:
    """− p log P − (1 − p) log (1 − P), of the shape of gap; P = σ(gap), or with noise ε (1 − ε) σ(gap) + ε / 2.

    gap: how much higher the first answer's score is. probability: p, how often the first is the better one.
    """
    right, wrong = _log_sigmoid(gap, noise), _log_sigmoid(-gap, noise)
    return -probability * right - (1 - probability) * wrong


def _log_sigmoid(gap: Tensor, noise: float) -> Tensor:
    if noise == 0:
        return F.logsigmoid(gap)
    return torch.logaddexp(F.logsigmoid(gap) + math.log1p(-noise), torch.full_like(gap, math.log(noise / 2)))


@dataclass(frozen=True)
class Ranked:
    """The scores of a batch's answers by prompt, and what is known of them; all (B, K).

    share: how often an answer is taken for the prompt's best, which together are 1. place: 0 is the best; equal where answers
    are as good. margin: what the score of an answer should be above that of one with 0. is_there: whether there is such an answer.
    """

    score_BK: Tensor
    share_BK: Tensor
    place_BK: Tensor
    margin_BK: Tensor
    is_there_BK: Tensor


def ranked_of(score_N: Tensor, targets: Targets) -> Ranked:
    """A batch's answers by prompt, from one score for each; `objectives.reward` says what the targets hold."""
    num_places = max(2, int(targets.sample_N.max()) + 1)
    shape = targets.num_rows, num_places
    index = targets.row_N, targets.sample_N

    def placed(values_N: Tensor) -> Tensor:
        return torch.zeros(shape, dtype=values_N.dtype, device=values_N.device).index_put(index, values_N)

    margin_N = torch.zeros_like(targets.weight_N) if targets.value_N is None else targets.value_N
    return Ranked(
        placed(score_N.float()),
        placed(targets.weight_N),
        placed(targets.token_N),
        placed(margin_N),
        placed(torch.ones_like(targets.row_N)).bool(),
    )


@dataclass(frozen=True)
class Compared:
    """Every two answers of each prompt, all (B, K, K): the first is i, the second j.

    gap: how much higher the first's score is. probability: how often the first is the better one. margin: by how much it should
    be. is_pair: whether both are there and i < j, so that two answers are one pair.
    """

    gap_BKK: Tensor
    probability_BKK: Tensor
    margin_BKK: Tensor
    is_pair_BKK: Tensor

    @property
    def count_B(self) -> Tensor:
        """How many pairs each prompt has."""
        return self.is_pair_BKK.sum((1, 2))

    def summed(self, values_BKK: Tensor) -> Tensor:
        """The sum over each prompt's pairs, shape (B,)."""
        return torch.where(self.is_pair_BKK, values_BKK, 0.0).sum((1, 2))


def compared(ranked: Ranked) -> Compared:
    """All pairs. Of two answers the shares say how often the first is better; of more, their places do."""
    num = ranked.is_there_BK.shape[1]
    there_BKK = ranked.is_there_BK[:, :, None] & ranked.is_there_BK[:, None, :]
    is_first = torch.ones(num, num, dtype=torch.bool, device=there_BKK.device).triu(1)
    ahead_BKK = ranked.place_BK[:, None, :] - ranked.place_BK[:, :, None]
    by_place_BKK = (ahead_BKK.sign() + 1).to(ranked.share_BK.dtype) / 2
    of_two_B11 = (ranked.is_there_BK.sum(1) == 2)[:, None, None]
    return Compared(
        ranked.score_BK[:, :, None] - ranked.score_BK[:, None, :],
        torch.where(of_two_B11, ranked.share_BK[:, :, None].expand_as(by_place_BKK), by_place_BKK),
        ranked.margin_BK[:, :, None] - ranked.margin_BK[:, None, :],
        there_BKK & is_first,
    )


def all_pairs(ranked: Ranked, margin_weight: float = 0.0, noise: float = 0.0) -> Tensor:
    """The mean of `bradley_terry` over every two answers of a prompt, shape (B,).

    Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, equation 1. margin_weight: what the margins are times before they are taken off
    the gaps.
    """
    pairs = compared(ranked)
    loss_BKK = bradley_terry(pairs.gap_BKK - margin_weight * pairs.margin_BKK, pairs.probability_BKK, noise)
    return pairs.summed(loss_BKK) / pairs.count_B


def plackett_luce(ranked: Ranked) -> Tensor:
    """− Σ_k (r_(k) − log Σ_{j ≥ k} exp r_(j)) over the answers from the best on, shape (B,); no two may share a place.

    Plackett 1975, https://doi.org/10.2307/2346567.
    """
    is_left_BKK = (ranked.place_BK[:, None, :] >= ranked.place_BK[:, :, None]) & ranked.is_there_BK[:, None, :]
    itself = torch.eye(is_left_BKK.shape[1], dtype=torch.bool, device=is_left_BKK.device)
    left_BKK = ranked.score_BK[:, None, :].masked_fill(~(is_left_BKK | itself), -torch.inf)
    loss_BK = left_BKK.logsumexp(2) - ranked.score_BK
    return torch.where(ranked.is_there_BK, loss_BK, 0.0).sum(1)


def best_of(ranked: Ranked) -> Tensor:
    """− Σ_i share_i r_i + log Σ_i exp r_i, shape (B,): which answer is the best, as one choice among all.

    Ziegler et al. 2019, https://arxiv.org/abs/1909.08593, equation 1.
    """
    score_BK = ranked.score_BK.masked_fill(~ranked.is_there_BK, -torch.inf)
    return score_BK.logsumexp(1) - (ranked.share_BK * ranked.score_BK).sum(1)


def centring(ranked: Ranked) -> Tensor:
    """The mean of (r_i + r_j)² over every two answers of a prompt, shape (B,).

    Eisenstein et al. 2023, https://arxiv.org/abs/2312.09244, section 2: it holds the scores' free shift near 0.
    """
    pairs = compared(ranked)
    sum_BKK = ranked.score_BK[:, :, None] + ranked.score_BK[:, None, :]
    return pairs.summed(sum_BKK.square()) / pairs.count_B
