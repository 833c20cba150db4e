"""AdamW: steps along the mean of gradients over the root of the mean of their squares.

Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101, algorithm 2, with m and v fp32:

    m ← β₁ m + (1 − β₁) g,   v ← β₂ v + (1 − β₂) g²,   w ← w − η (m̂ / (√v̂ + ε) + λ w),

m̂ = m / (1 − β₁ᵗ) and v̂ = v / (1 − β₂ᵗ) without the bias towards zero. State: 8 bytes a number.
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from luthier.methods.contract import Group
from luthier.training.flat import FlatTrainables
from luthier.training.optimizers.contract import Allocate, Optimizer, OptimizerSettings, Rule, State

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Adam(OptimizerSettings, ABC):
    """What AdamW and the optimizers with its two moments set alike."""

    paper: ClassVar[str] = "https://arxiv.org/abs/1711.05101"

    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the mean of gradients.")
    beta2: float = Field(0.999, ge=0, lt=1, description="Decay of the mean of squared gradients.")
    eps: float = Field(1e-8, gt=0, description="Added to the root of the second moment.")

    def moments(self) -> AdamWRule:
        """The rule with moments in fp32."""
        return AdamWRule(self.beta1, self.beta2, self.eps)


class AdamW(Adam):
    """AdamW with decoupled weight decay: Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101."""

    kind: Literal["adamw"] = "adamw"

    def rule(self, name: str, tensor: Tensor, is_table: bool) -> Rule:
        """Moments in fp32."""
        return self.moments()

    def state_bytes(self, shape: tuple[int, ...], is_table: bool) -> int:
        """Two numbers in fp32 for each."""
        return 8 * math.prod(shape)


class AdamWRule(Rule):
    """AdamW on one tensor, with moments in fp32."""

    def __init__(self, beta1: float, beta2: float, eps: float) -> None:
        self.beta1, self.beta2, self.eps = beta1, beta2, eps

    def fresh(self, tensor: Tensor, allocate: Allocate) -> State:
        """Both moments zero."""
        return {moment: allocate(moment, tuple(tensor.shape), torch.float32) for moment in _MOMENTS}

    def update(self, tensor: Tensor, gradient: Tensor, state: State, step: int, lr: float, decay: float) -> None:
        """One step of algorithm 2."""
        adamw_update(tensor, gradient, state["exp_avg"], state["exp_avg_sq"], step, lr, decay, self)


def adamw_update(
    tensor: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    step: int,
    lr: float,
    decay: float,
    rule: AdamWRule,
) -> None:
    """Move a tensor and its moments, all fp32 and of one shape, in place. The gradient is overwritten."""
    mean.lerp_(gradient, 1 - rule.beta1)
    square.mul_(rule.beta2).addcmul_(gradient, gradient, value=1 - rule.beta2)
    if decay:
        tensor.mul_(1 - lr * decay)
    root = torch.sqrt(square, out=gradient).div_(math.sqrt(1 - rule.beta2**step)).add_(rule.eps)
    tensor.addcdiv_(mean, root, value=-lr / (1 - rule.beta1**step))


class FlatAdamW(Optimizer):
    """AdamW on one vector for each group, by torch's fused operation: the fast form of `AdamWRule`."""

    def __init__(self, trainables: FlatTrainables, settings: AdamW) -> None:
        self.trainables = trainables
        self.settings = settings
        self.optimizer = _adamw(trainables, settings)

    def step(self, lr: float) -> None:
        """One update at a learning rate, times each group's own factor."""
        for flat, options in zip(self.trainables.groups, self.optimizer.param_groups, strict=True):
            options["lr"] = lr * flat.group.lr_factor
        self.optimizer.step()

    def exchange(self, groups: Sequence[Group]) -> None:
        """Train these groups from now on; one of the same tensors as a group of before keeps its state."""
        self.trainables.exchange(groups)
        before = self.optimizer.state
        self.optimizer = _adamw(self.trainables, self.settings)
        for flat in self.trainables.groups:
            if flat.vector in before:
                self.optimizer.state[flat.vector] = before[flat.vector]

    def named_state(self) -> dict[str, Tensor]:
        """Both moments of every tensor by name, and the count of steps, as copies on the CPU."""
        state: dict[str, Tensor] = {}
        for index, flat in enumerate(self.trainables.groups):
            own = self.optimizer.state[flat.vector]
            if not own:
                continue
            state[f"step.{index}"] = own["step"].clone().cpu()
            for moment in _MOMENTS:
                for name in flat.spans:
                    state[f"{moment}.{name}"] = flat.view(own[moment], name).clone().cpu()
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `named_state` gave."""
        for index, flat in enumerate(self.trainables.groups):
            if f"step.{index}" not in state:
                continue
            own = {"step": state[f"step.{index}"].to(flat.vector.device)}
            for moment in _MOMENTS:
                own[moment] = torch.zeros_like(flat.vector.data)
                for name in flat.spans:
                    flat.view(own[moment], name).copy_(state[f"{moment}.{name}"])
            self.optimizer.state[flat.vector] = own


def _adamw(trainables: FlatTrainables, settings: AdamW) -> torch.optim.AdamW:
    """torch's optimizer over the groups' vectors, without state."""
    return torch.optim.AdamW(
        [
            {"params": [flat.vector], "weight_decay": settings.weight_decay if flat.group.decays else 0.0}
            for flat in trainables.groups
        ],
        lr=0.0,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        fused=True,
    )
