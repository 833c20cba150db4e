"""Muon: each matrix steps along the nearest orthogonal matrix to its momentum.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/, with the scale and the decay of Liu et al. 2025,
https://arxiv.org/abs/2502.16982, equation 4, at which a step is as large as one of AdamW, so that its rates serve:

    M ← μ M + G,   O = NS(G + μ M),   W ← W − η (0.2 √max(O, I) · O + λ W).

NS: five Newton–Schulz steps X ← a X + (b X Xᵀ + c (X Xᵀ)²) X from X = M / ‖M‖, which drive all singular values near one.
Vectors, embedding and head go by AdamW. State: 4 bytes a number of a matrix, 8 of the others.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from luthier.training.optimizers.adamw import AdamWRule
from luthier.training.optimizers.contract import Allocate, OptimizerSettings, Rule, State

_A, _B, _C = 3.4445, -4.7750, 2.0315
_ADAMW_RMS = 0.2
"""The root mean square of a usual step of AdamW."""


class Muon(OptimizerSettings):
    """Muon for matrices, AdamW for the rest: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2502.16982"

    kind: Literal["muon"] = "muon"
    momentum: float = Field(0.95, ge=0, lt=1, description="μ: share of the last step's direction that is kept.")
    nesterov: bool = Field(True, description="Look ahead along the momentum.")
    newton_schulz_steps: int = Field(5, ge=1, le=20, description="Steps towards the orthogonal matrix.")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's, for vectors, embedding and head.")
    beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's, for vectors, embedding and head.")
    eps: float = Field(1e-8, gt=0, description="AdamW's, for vectors, embedding and head.")

    def rule(self, name: str, tensor: Tensor, is_table: bool) -> Rule:
        """By whether it is a matrix that multiplies."""
        if tensor.dim() != 2 or is_table:
            return AdamWRule(self.beta1, self.beta2, self.eps)
        return MuonRule(self.momentum, self.nesterov, self.newton_schulz_steps)

    def state_bytes(self, shape: tuple[int, ...], is_table: bool) -> int:
        """One number in fp32 for each of a matrix, two for others."""
        return (8 if len(shape) != 2 or is_table else 4) * math.prod(shape)


class MuonRule(Rule):
    """Muon on one matrix."""

    def __init__(self, momentum: float, nesterov: bool, steps: int) -> None:
        self.momentum, self.nesterov, self.steps = momentum, nesterov, steps

    def fresh(self, tensor: Tensor, allocate: Allocate) -> State:
        """No momentum yet."""
        return {"momentum": allocate("momentum", tuple(tensor.shape), torch.float32)}

    def update(self, tensor: Tensor, gradient: Tensor, state: State, step: int, lr: float, decay: float) -> None:
        """One step of the module's formula."""
        kept = state["momentum"].mul_(self.momentum).add_(gradient)
        direction = gradient.add_(kept, alpha=self.momentum) if self.nesterov else kept
        if decay:
            tensor.mul_(1 - lr * decay)
        scale = _ADAMW_RMS * math.sqrt(max(tensor.shape))
        tensor.sub_(orthogonalized(direction, self.steps), alpha=lr * scale)


def orthogonalized(matrix_OI: Tensor, steps: int) -> Tensor:
    """Nearly U Vᵀ of a matrix U Σ Vᵀ, by Newton–Schulz steps."""
    is_tall = matrix_OI.shape[0] > matrix_OI.shape[1]
    x = matrix_OI.t() if is_tall else matrix_OI
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.t()
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.t() if is_tall else x
