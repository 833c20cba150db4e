"""Adafactor: the squares of a matrix's gradients as a product of a column and a row.

Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235, algorithms 4 and 5. For a matrix, with G² the squares and ε₁ added:

    R ← β̂₂ R + (1 − β̂₂) mean over columns of G²,   C ← β̂₂ C + (1 − β̂₂) mean over rows of G²,   V̂ = R Cᵀ / mean(R),
    U = G / √V̂,   W ← W − η (U / max(1, RMS(U) / d) + λ W),   β̂₂ = 1 − t^c.

A vector keeps all its squares. Here the rate is that of the recipe, as for every optimizer, and not the paper's, which depends
on the size of the weights; there is no mean of gradients. State: 4 (O + I) bytes for a matrix (O, I).
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from luthier.training.optimizers.contract import Allocate, OptimizerSettings, Rule, State


class Adafactor(OptimizerSettings):
    """Adafactor, whose memory for a matrix is a row and a column: Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235."""

    paper: ClassVar[str] = "https://arxiv.org/abs/1804.04235"

    kind: Literal["adafactor"] = "adafactor"
    decay_power: float = Field(
        -0.8, lt=0, ge=-1, description="c: at step t the share 1 − t^c of the old squares stays."
    )
    eps: float = Field(1e-30, gt=0, description="Added to the squares.")
    clip_rms: float = Field(
        1.0, gt=0, description="d: no tensor's step has a root mean square above this, times the rate."
    )

    def rule(self, name: str, tensor: Tensor, is_table: bool) -> Rule:
        """By the tensor's axes: factored from two on."""
        return AdafactorRule(self.decay_power, self.eps, self.clip_rms)

    def state_bytes(self, shape: tuple[int, ...], is_table: bool) -> int:
        """A row and a column of every matrix in it."""
        if len(shape) < 2:
            return 4 * math.prod(shape)
        return 4 * math.prod(shape[:-2]) * (shape[-1] + shape[-2])


class AdafactorRule(Rule):
    """Adafactor on one tensor; of more than two axes, on each of its matrices."""

    def __init__(self, decay_power: float, eps: float, clip_rms: float) -> None:
        self.decay_power, self.eps, self.clip_rms = decay_power, eps, clip_rms

    def fresh(self, tensor: Tensor, allocate: Allocate) -> State:
        """No squares yet."""
        shape = tuple(tensor.shape)
        if len(shape) < 2:
            return {"exp_avg_sq": allocate("exp_avg_sq", shape, torch.float32)}
        rows, columns = shape[:-1], (*shape[:-2], shape[-1])
        return {
            "exp_avg_sq_row": allocate("exp_avg_sq_row", rows, torch.float32),
            "exp_avg_sq_col": allocate("exp_avg_sq_col", columns, torch.float32),
        }

    def update(self, tensor: Tensor, gradient: Tensor, state: State, step: int, lr: float, decay: float) -> None:
        """One step of algorithm 4 or 5."""
        share = step**self.decay_power
        square = gradient.square().add_(self.eps)
        if "exp_avg_sq" in state:
            whole = state["exp_avg_sq"].lerp_(square, share)
            move = gradient.mul_(whole.rsqrt())
        else:
            row = state["exp_avg_sq_row"].lerp_(square.mean(-1), share)
            column = state["exp_avg_sq_col"].lerp_(square.mean(-2), share)
            of_row = (row / row.mean(-1, keepdim=True)).rsqrt_()
            move = gradient.mul_(of_row.unsqueeze(-1)).mul_(column.rsqrt().unsqueeze(-2))
        rms = move.norm() / math.sqrt(move.numel())
        if decay:
            tensor.mul_(1 - lr * decay)
        tensor.sub_(move.mul_(lr / (rms / self.clip_rms).clamp(min=1.0)))
