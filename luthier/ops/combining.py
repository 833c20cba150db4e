"""Several weight updates made into one.

linear  Σ wₙ Δₙ.
ties    TIES, Yadav et al. 2023, https://arxiv.org/abs/2306.01708: each update keeps its largest entries by magnitude; each
        entry gets the sign that has the greater sum; what remains of that sign is averaged.
dare    DARE, Yu et al. 2023, https://arxiv.org/abs/2311.03099: each entry is dropped with probability 1 − density and the
        others are divided by density, so that the expected update stays; then the sum is taken.
prune   each update keeps its largest entries by magnitude; then the sum is taken.
slerp   whole models: along the arc between two weights, Shoemake 1985, https://doi.org/10.1145/325165.325242:
        (sin((1 − t) Ω) W₁ + sin(t Ω) W₂) / sin Ω, with Ω the angle between them.

TIES, DARE and pruning are as peft's `merge_utils` computes them but for two things. Weights enter each update before anything else,
so they count where signs are chosen; and an entry whose sum is exactly zero has no sign, and becomes zero.
Shapes: M updates, O outputs, I inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from luthier.ops.spectrum import Factors


def linear(updates: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """Σ wₙ Δₙ as one product, exactly: factors side by side, of the sum of the ranks."""
    left = torch.cat([weight * update.left_OR for update, weight in zip(updates, weights, strict=True)], dim=1)
    return Factors(left, torch.cat([update.right_RI for update in updates]))


def ties(updates_MOI: Tensor, density: float) -> Tensor:
    """The updates trimmed to their largest entries, in agreement about the sign, and averaged; shape (O, I)."""
    trimmed_MOI = torch.stack([trim(update_OI, density) for update_OI in updates_MOI])
    sign_OI = trimmed_MOI.sum(0).sign()
    agrees_MOI = (trimmed_MOI.sign() == sign_OI) & (trimmed_MOI != 0)
    return torch.where(agrees_MOI, trimmed_MOI, 0).sum(0) / agrees_MOI.sum(0).clamp(min=1)


def trim(update_OI: Tensor, density: float) -> Tensor:
    """The share `density` of entries that are largest in magnitude, at least one; the others zero."""
    count = max(1, round(density * update_OI.numel()))
    kept = update_OI.abs().flatten().topk(count).indices
    trimmed = torch.zeros_like(update_OI).flatten()
    trimmed[kept] = update_OI.flatten()[kept]
    return trimmed.view_as(update_OI)


def dare(updates_MOI: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """The sum of the updates, each with entries dropped at random and the others scaled up; shape (O, I)."""
    keeps_MOI = torch.rand(updates_MOI.shape, generator=generator) < density
    return torch.where(keeps_MOI, updates_MOI / density, 0).sum(0)


def prune(updates_MOI: Tensor, density: float) -> Tensor:
    """The sum of the updates, each trimmed to its largest entries; shape (O, I)."""
    return torch.stack([trim(update_OI, density) for update_OI in updates_MOI]).sum(0)


def slerp(one: Tensor, other: Tensor, t: float) -> Tensor:
    """The weight at `t` (0: the one, 1: the other) on the arc between two of any shape; on the line where they all but point alike."""
    lengths = one.double().norm() * other.double().norm()
    cosine = float((one.double() * other.double()).sum() / lengths) if lengths else 1.0
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    if math.sin(angle) < 1e-6:
        return (1 - t) * one + t * other
    return (math.sin((1 - t) * angle) * one + math.sin(t * angle) * other) / math.sin(angle)
