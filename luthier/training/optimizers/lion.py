"""Lion: steps of one size along the sign of a mean of gradients.

Chen et al. 2023, https://arxiv.org/abs/2302.06675, program 1:

    c = β₁ m + (1 − β₁) g,   w ← w − η (sign(c) + λ w),   m ← β₂ m + (1 − β₂) g.

Since every number moves by the whole rate, the paper takes a rate three to ten times lower than for AdamW (and a decay
as many times higher). State: 4 bytes a number.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from luthier.training.optimizers.contract import Allocate, OptimizerSettings, Rule, State


class Lion(OptimizerSettings):
    """Lion, which remembers one number for each weight: Chen et al. 2023, https://arxiv.org/abs/2302.06675."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2302.06675"
    rate: ClassVar[float] = 0.2

    kind: Literal["lion"] = "lion"
    beta1: float = Field(
        0.9, ge=0, lt=1, description="Weight of the mean against the gradient in the direction of a step."
    )
    beta2: float = Field(0.99, ge=0, lt=1, description="Decay of the mean of gradients.")

    def rule(self, name: str, tensor: Tensor, is_table: bool) -> Rule:
        """The same for every tensor."""
        return LionRule(self.beta1, self.beta2)

    def state_bytes(self, shape: tuple[int, ...], is_table: bool) -> int:
        """One number in fp32 for each."""
        return 4 * math.prod(shape)


class LionRule(Rule):
    """Lion on one tensor."""

    def __init__(self, beta1: float, beta2: float) -> None:
        self.beta1, self.beta2 = beta1, beta2

    def fresh(self, tensor: Tensor, allocate: Allocate) -> State:
        """The mean zero."""
        return {"exp_avg": allocate("exp_avg", tuple(tensor.shape), torch.float32)}

    def update(self, tensor: Tensor, gradient: Tensor, state: State, step: int, lr: float, decay: float) -> None:
        """One step of program 1."""
        mean = state["exp_avg"]
        direction = torch.lerp(mean, gradient, 1 - self.beta1).sign_()
        if decay:
            tensor.mul_(1 - lr * decay)
        tensor.sub_(direction, alpha=lr)
        mean.lerp_(gradient, 1 - self.beta2)
