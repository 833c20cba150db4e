"""The singular values of a weight update, and the best update of a smaller rank.

By Eckart & Young 1936 (https://doi.org/10.1007/BF02288367) the closest matrix of rank R, in Frobenius norm, keeps the R
largest singular values; what it loses is the energy Σ_{i>R} σᵢ² of the others.
Shapes: O outputs, I inputs, K singular values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Factors:
    """A matrix (O, I) as the product left · right, with left (O, R) and right (R, I)."""

    left_OR: Tensor
    right_RI: Tensor

    def dense(self) -> Tensor:
        """The matrix itself."""
        return self.left_OR @ self.right_RI


@dataclass(frozen=True)
class SVD:
    """U diag(σ) Vᵀ with u (O, K), sigma (K,) from the largest down, and vt (K, I)."""

    u_OK: Tensor
    sigma_K: Tensor
    vt_KI: Tensor

    def best(self, rank: int) -> Factors:
        """The closest matrix of that rank, its singular values shared evenly between the factors."""
        root_R = self.sigma_K[:rank].sqrt()
        return Factors(self.u_OK[:, :rank] * root_R, root_R[:, None] * self.vt_KI[:rank])


def svd_of(update: Tensor | Factors) -> SVD:
    """The singular value decomposition in fp32; of a product by way of its factors, without the product."""
    if isinstance(update, Tensor):
        return SVD(*torch.linalg.svd(update.float(), full_matrices=False))
    left_q, left_r = torch.linalg.qr(update.left_OR.float())
    right_q, right_r = torch.linalg.qr(update.right_RI.float().t())
    u, sigma, vt = torch.linalg.svd(left_r @ right_r.t(), full_matrices=False)
    return SVD(left_q @ u, sigma, vt @ right_q.t())


def effective_rank(sigma_K: Tensor) -> float:
    """exp of the entropy of σ / Σσ: between 1 and K (Roy & Vetterli 2007, EUSIPCO); 0 for a matrix of zeros."""
    total = float(sigma_K.double().sum())
    if total == 0:
        return 0.0
    share_K = sigma_K.double() / total
    return float(torch.exp(-torch.special.xlogy(share_K, share_K).sum()))


def energy_by_rank(sigma_K: Tensor) -> Tensor:
    """The share of Σσ² that the first 1, 2, …, K singular values hold, fp64; all 1 for a matrix of zeros."""
    energy_K = sigma_K.double().square().cumsum(0)
    return energy_K / energy_K[-1] if float(energy_K[-1]) > 0 else torch.ones_like(energy_K)


def rank_for(sigma_K: Tensor, energy: float) -> int:
    """The smallest rank, at least 1, that keeps this share of the energy."""
    enough_K = energy_by_rank(sigma_K) >= energy * (1 - 1e-9)
    return int(enough_K.int().argmax()) + 1
