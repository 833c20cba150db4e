"""The critic of PPO: what reward is still to be expected before each token, by an adapter of its own on the frozen base.

The value of a token's state is w · h + b of the last hidden state there, with w and b zero at the start, in fp32. Its adapter is
apart from the policy's, so that neither's gradient reaches the other. So the critic's own gradient is taken before the policy is computed,
and what the one keeps for its backward pass is gone when the other keeps its own: both train in the memory of one.
Shapes: N targets, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from luthier.data.packing import collate
from luthier.methods import LoRA
from luthier.methods.contract import Attachment, Forward, Group, StepDone
from luthier.models.language_model import LanguageModel
from luthier.models.outputs import Outputs, Values
from luthier.models.taps import Taps
from luthier.prediction.passes import Passes, Said, said_of_each
from luthier.training.companions import Speaker, Voice
from luthier.types import Batch, Example, FloatArray, Targets

ADAPTER = "critic"
_PREFIX = "critic."

Slope = Callable[[Tensor, Targets], Tensor]
"""The derivative of a micro-batch's summed loss by the values at its targets, shape (N,), which depends on nothing else that trains."""


class Critic(Voice):
    """A critic at work. rows: the examples of the step at hand, without placeholders, by their documents."""

    learns: ClassVar[bool] = True

    def __init__(
        self,
        model: LanguageModel,
        rank: int,
        seed: int,
        rows: Mapping[int, Example],
        slope: Slope,
        *,
        fast: bool = True,
    ) -> None:
        self.attachment = LoRA(rank=rank, alpha=float(rank)).attach(model, ADAPTER, seed, fast=fast)
        self.speaker = Speaker(model, ADAPTER)
        self.rows = rows
        self.slope = slope
        width = int(model.hf.get_submodule(model.anatomy.embedding).get_parameter("weight").shape[1])
        self.weight_D = nn.Parameter(torch.zeros(width, device=model.device))
        self.bias = nn.Parameter(torch.zeros((), device=model.device))

    @property
    def groups(self) -> tuple[Group, ...]:
        """What trains of it."""
        head = {f"{_PREFIX}head.weight": self.weight_D, f"{_PREFIX}head.bias": self.bias}
        own = tuple(
            replace(group, tensors={_PREFIX + name: tensor for name, tensor in group.tensors.items()})
            for group in self.attachment.groups
        )
        return (*own, Group(head, decays=False))

    def values(self, outputs: Outputs) -> Tensor:
        """V at each target, fp32, shape (N,)."""
        return outputs.hidden_ND.float() @ self.weight_D + self.bias

    def say(self, batch: Batch) -> Values:
        """The values at a batch's targets. With gradients, that of the critic's tensors is taken here, and kept."""
        model = self.speaker.model
        placed = [self.speaker.placed(self.rows[row]) for row in batch.rows]
        own = collate(placed, model.layout, model.pad_id)

        def compute() -> tuple[Tensor, Targets]:
            outputs = self.speaker.of_batch(own)
            return self.values(outputs), outputs.targets

        if not torch.is_grad_enabled():
            return Values(compute()[0])
        tensors = [tensor for group in self.groups for tensor in group.tensors.values()]
        return Values(cast(Tensor, _Settled.apply(compute, self.slope, *tensors)))  # type: ignore[no-untyped-call]

    def knows(self, batch: Batch) -> bool:
        """Not texts of pre-training, which earn nothing."""
        return all(row in self.rows for row in batch.rows)

    def of_examples(self, examples: Sequence[Example], passes: Passes) -> list[FloatArray]:
        """The values at each example's targets, without gradients."""

        def say(outputs: Outputs) -> Said:
            return self.values(outputs), outputs.targets.row_N

        said = said_of_each(self.speaker.model, ADAPTER, examples, say, passes, "expecting rewards")
        return [each.float().numpy() for each in said]


class _Settled(torch.autograd.Function):
    """Values whose gradient is settled as they are computed: nothing is kept of them but what they owe to each tensor."""

    @staticmethod
    def forward(ctx: Any, compute: Callable[[], tuple[Tensor, Targets]], slope: Slope, *tensors: Tensor) -> Tensor:
        with torch.enable_grad():
            value_N, targets = compute()
        slope_N = slope(value_N.detach(), targets)
        ctx.save_for_backward(slope_N, *torch.autograd.grad(value_N, tensors, slope_N, allow_unused=True))
        return value_N.detach()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (dv_N,) = grad_outputs
        slope_N, *gradients = ctx.saved_tensors
        # what comes back is the slope times what the whole loss is multiplied by
        factor = (dv_N * slope_N).sum() / slope_N.square().sum().clamp(min=torch.finfo(slope_N.dtype).tiny)
        return None, None, *(None if gradient is None else gradient * factor for gradient in gradients)


class WithCritic(Attachment):
    """A policy's method and its critic, which train together; what a run leaves is the policy alone."""

    def __init__(self, policy: Attachment, critic: Critic, lr_factor: float) -> None:
        self.policy, self.critic, self.model = policy, critic, policy.model
        self._lr_factor = lr_factor

    @property
    def groups(self) -> tuple[Group, ...]:
        """Those of both."""
        own = tuple(replace(group, lr_factor=group.lr_factor * self._lr_factor) for group in self.critic.groups)
        return (*self.policy.groups, *own)

    @property
    def lowest_layer(self) -> int | None:
        """The lower of both."""
        lowest = (self.policy.lowest_layer, self.critic.attachment.lowest_layer)
        return None if None in lowest else min(layer for layer in lowest if layer is not None)

    @property
    def taps(self) -> Taps:
        """The policy's."""
        return self.policy.taps

    @property
    def adapter(self) -> str | None:
        """The policy's."""
        return self.policy.adapter

    def folded(self) -> AbstractContextManager[str | None]:
        """The policy's."""
        return self.policy.folded()

    @property
    def draws(self) -> bool:
        """Whether the policy's method draws."""
        return self.policy.draws

    @property
    def is_random(self) -> bool:
        """Whether the policy's method is."""
        return self.policy.is_random

    @property
    def num_virtual(self) -> int:
        """The policy's."""
        return self.policy.num_virtual

    @property
    def num_virtual_answer(self) -> int:
        """The policy's."""
        return self.policy.num_virtual_answer

    @property
    def notes(self) -> tuple[str, ...]:
        """The policy's."""
        return self.policy.notes

    def loss_sum(self, forward: Forward, loss_of: Callable[[Outputs], Tensor]) -> Tensor:
        """As the policy's method has it."""
        return self.policy.loss_sum(forward, loss_of)

    def extra_loss(self) -> Tensor | None:
        """The policy's."""
        return self.policy.extra_loss()

    def after_step(self, done: StepDone) -> bool:
        """The policy's method takes notice."""
        return self.policy.after_step(done)

    def state(self) -> dict[str, Tensor]:
        """What both remember."""
        critic = {_PREFIX + name: tensor for name, tensor in self.critic.attachment.state().items()}
        return {**self.policy.state(), **critic}

    def trained_shapes(self, state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """Those of both."""
        own = {name: tensor for name, tensor in state.items() if not name.startswith(_PREFIX)}
        critic = {name: tuple(tensor.shape) for group in self.critic.groups for name, tensor in group.tensors.items()}
        return {**self.policy.trained_shapes(own), **critic}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Each takes up its own."""
        own = {name: tensor for name, tensor in state.items() if not name.startswith(_PREFIX)}
        self.policy.load_state(own)
        others = {name.removeprefix(_PREFIX): tensor for name, tensor in state.items() if name.startswith(_PREFIX)}
        self.critic.attachment.load_state(others)

    def write(self, folder: Path, announce: Callable[[str], None]) -> None:
        """The policy alone."""
        self.policy.write(folder, announce)

    def merge(self) -> None:
        """The policy alone."""
        self.policy.merge()
