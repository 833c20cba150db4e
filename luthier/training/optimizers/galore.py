"""GaLore: AdamW on a low-rank projection of a matrix's gradient.

Zhao et al. 2024, https://arxiv.org/abs/2403.03507, algorithm 2. For a matrix with fewer outputs than inputs, and mirrored else:

    R = Pᵀ G,   N = AdamW's direction for R,   W ← W − η (α P N + λ W),

P the R leading left singular vectors of the gradient, found anew every T steps; the moments, in its coordinates, stay, as in the
paper. Vectors, embedding and head go by AdamW. State: 4 (O R + 2 R I) bytes for a matrix (O, I) with O ≤ I.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from luthier.training.optimizers.adamw import Adam, AdamWRule, adamw_update
from luthier.training.optimizers.contract import Allocate, Rule, State


class GaLore(Adam):
    """AdamW whose state is of low rank, for full tuning: Zhao et al. 2024, https://arxiv.org/abs/2403.03507."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2403.03507"

    kind: Literal["galore"] = "galore"
    rank: int = Field(128, ge=1, description="Directions in which a matrix moves until they are chosen anew.")
    refresh_every: int = Field(200, ge=1, description="Steps between choices of directions.")
    scale: float = Field(0.25, gt=0, allow_inf_nan=False, description="α: what a projected step is multiplied by.")

    def rule(self, name: str, tensor: Tensor, is_table: bool) -> Rule:
        """By whether it is a matrix that multiplies, and larger than the rank."""
        adamw = self.moments()
        if not self._projects(tuple(tensor.shape), is_table):
            return adamw
        return GaLoreRule(adamw, self.rank, self.refresh_every, self.scale)

    def _projects(self, shape: tuple[int, ...], is_table: bool) -> bool:
        return len(shape) == 2 and not is_table and min(shape) > self.rank

    def state_bytes(self, shape: tuple[int, ...], is_table: bool) -> int:
        """The directions, and two moments in their coordinates."""
        if not self._projects(shape, is_table):
            return 8 * math.prod(shape)
        return 4 * self.rank * (min(shape) + 2 * max(shape))


class GaLoreRule(Rule):
    """GaLore on one matrix."""

    def __init__(self, adamw: AdamWRule, rank: int, refresh_every: int, scale: float) -> None:
        self.adamw, self.rank, self.refresh_every, self.scale = adamw, rank, refresh_every, scale

    def fresh(self, tensor: Tensor, allocate: Allocate) -> State:
        """Directions to be chosen at the first step; both moments zero."""
        short, long = min(tensor.shape), max(tensor.shape)
        moments = {name: allocate(name, (self.rank, long), torch.float32) for name in ("exp_avg", "exp_avg_sq")}
        return {"directions": allocate("directions", (short, self.rank), torch.float32), **moments}

    def update(self, tensor: Tensor, gradient: Tensor, state: State, step: int, lr: float, decay: float) -> None:
        """One step of algorithm 2."""
        is_tall = tensor.shape[0] > tensor.shape[1]
        weight_SL, gradient_SL = (tensor.t(), gradient.t()) if is_tall else (tensor, gradient)
        directions_SR = state["directions"]
        if (step - 1) % self.refresh_every == 0:
            directions_SR.copy_(torch.linalg.svd(gradient_SL, full_matrices=False).U[:, : self.rank])
        moved_RL = torch.zeros_like(state["exp_avg"])
        projected_RL = directions_SR.t() @ gradient_SL
        adamw_update(moved_RL, projected_RL, state["exp_avg"], state["exp_avg_sq"], step, lr, 0.0, self.adamw)
        if decay:
            tensor.mul_(1 - lr * decay)
        weight_SL.addmm_(directions_SR, moved_RL, alpha=self.scale)
