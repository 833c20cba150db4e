"""The optimizer over flat vectors, its state by tensor name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from luthier.methods.contract import Group
from luthier.training.flat import FlatTrainables
from luthier.training.settings import AdamW

_MOMENTS = ("exp_avg", "exp_avg_sq")


class FlatAdamW:
    """AdamW (fused) on one vector for each group: decoupled decay, bias correction, fp32 state."""

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

    def load_state(self, state: dict[str, Tensor]) -> None:
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
