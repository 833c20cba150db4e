"""Stochastic gradient descent, with momentum if wanted.

Robbins & Monro 1951, https://doi.org/10.1214/aoms/1177729586; momentum after Sutskever et al. 2013, section 2, in torch's form:

    m ← μ m + g,   w ← w − η (d + λ w),   d = m, or g + μ m with Nesterov's, or g without momentum.

State: 4 bytes a number with momentum, else none.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from luthier.training.optimizers.contract import Allocate, OptimizerSettings, Rule, State


class SGD(OptimizerSettings):
    """Plain gradient descent: it remembers nothing, or with momentum one number for each weight."""

    paper: ClassVar[str] = "https://doi.org/10.1214/aoms/1177729586"
    rate: ClassVar[float] = 100.0

    kind: Literal["sgd"] = "sgd"
    momentum: float = Field(0.0, ge=0, lt=1, description="Share of the last step's direction that is kept.")
    nesterov: bool = Field(False, description="Look ahead along the momentum.")

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError(
                "nesterov looks ahead along the momentum, of which there is none; set momentum, such as 0.9."
            )
        return self

    def rule(self, name: str, tensor: Tensor, is_table: bool) -> Rule:
        """The same for every tensor."""
        return SGDRule(self.momentum, self.nesterov)

    def state_bytes(self, shape: tuple[int, ...], is_table: bool) -> int:
        """One number in fp32 for each, if there is momentum."""
        return 4 * math.prod(shape) if self.momentum else 0


class SGDRule(Rule):
    """Gradient descent on one tensor."""

    def __init__(self, momentum: float, nesterov: bool) -> None:
        self.momentum, self.nesterov = momentum, nesterov

    def fresh(self, tensor: Tensor, allocate: Allocate) -> State:
        """No momentum yet."""
        return {"momentum": allocate("momentum", tuple(tensor.shape), torch.float32)} if self.momentum else {}

    def update(self, tensor: Tensor, gradient: Tensor, state: State, step: int, lr: float, decay: float) -> None:
        """One step."""
        direction = gradient
        if self.momentum:
            kept = state["momentum"].mul_(self.momentum).add_(gradient)
            direction = gradient.add_(kept, alpha=self.momentum) if self.nesterov else kept
        if decay:
            tensor.mul_(1 - lr * decay)
        tensor.sub_(direction, alpha=lr)
