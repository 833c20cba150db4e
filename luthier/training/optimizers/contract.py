"""What an optimizer owes the loop, and what a rule for single tensors owes the optimizer that carries it out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from luthier.methods.contract import Group
from luthier.training.flat import FlatGroup, FlatTrainables
from luthier.types import Settings

State = dict[str, Tensor]
"""What a rule remembers of one tensor, by the name of what it is."""

Allocate = Callable[[str, tuple[int, ...], torch.dtype], Tensor]
"""Makes a tensor of zeros for a state: its name, shape and number format."""

_STEP = "step"


class Rule(ABC):
    """How one tensor moves."""

    @abstractmethod
    def fresh(self, tensor: Tensor, allocate: Allocate) -> State:
        """The state before the first step."""

    @abstractmethod
    def update(self, tensor: Tensor, gradient: Tensor, state: State, step: int, lr: float, decay: float) -> None:
        """Move the tensor, and the state, in place.

        step: how many updates the tensor has had with this one. decay: what share of the weight goes, times the rate. The
        gradient may be overwritten.
        """


class OptimizerSettings(Settings, ABC):
    """The settings of an optimizer; its `kind` names it in a recipe.

    paper: where it comes from. rate: by what the method's own default learning rate, which is one for AdamW, is multiplied
    where a recipe gives none. is_paged: whether its state lives in files rather than in memory.
    """

    paper: ClassVar[str]
    rate: ClassVar[float] = 1.0
    is_paged: ClassVar[bool] = False

    kind: str
    weight_decay: float = Field(0.0, ge=0, description="Share of each weight taken off a step, times the rate.")

    @abstractmethod
    def rule(self, name: str, tensor: Tensor, is_table: bool) -> Rule:
        """The rule for a tensor. is_table: whether its rows are looked up or give logits (embedding and head)."""

    @abstractmethod
    def state_bytes(self, shape: tuple[int, ...], is_table: bool) -> int:
        """What the state of a tensor of that shape takes."""


class Optimizer(ABC):
    """Moves trainables by their gradients."""

    trainables: FlatTrainables

    @abstractmethod
    def step(self, lr: float) -> None:
        """One update at a learning rate, times each group's own factor."""

    @abstractmethod
    def exchange(self, groups: Sequence[Group]) -> None:
        """Train these groups from now on; one of the same tensors as a group of before keeps its state."""

    @abstractmethod
    def named_state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name, on the CPU: copies, or for a state in files the state itself."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `named_state` gave."""


class PerTensor(Optimizer):
    """Carries out a rule for each tensor. The state begins with the tensor's first step.

    tables: the names of the tensors whose rows are looked up or give logits.
    """

    def __init__(
        self,
        trainables: FlatTrainables,
        settings: OptimizerSettings,
        tables: frozenset[str] = frozenset(),
        allocate: Allocate | None = None,
    ) -> None:
        self.trainables = trainables
        self.settings = settings
        self.tables = tables
        self.allocate = allocate or self._zeros
        self.states: dict[str, State] = {}
        self.steps: dict[str, int] = {}

    def _zeros(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.trainables.groups[0].vector.device)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update of every tensor, in order."""
        for flat in self.trainables.groups:
            assert flat.vector.grad is not None, "gradients are summed first"
            for name in flat.spans:
                self.step_of(flat, name, flat.view(flat.vector.grad, name), lr)

    @torch.no_grad()
    def step_of(self, flat: FlatGroup, name: str, gradient: Tensor, lr: float) -> None:
        """One update of a single tensor of a group."""
        tensor = flat.view(flat.vector.data, name)
        rule = self._rule(name, tensor)
        if name not in self.states:
            self.states[name] = rule.fresh(tensor, self._named(name))
            self.steps[name] = 0
        self.steps[name] += 1
        decay = self.settings.weight_decay if flat.group.decays else 0.0
        rule.update(tensor, gradient, self.states[name], self.steps[name], lr * flat.group.lr_factor, decay)

    def _rule(self, name: str, tensor: Tensor) -> Rule:
        return self.settings.rule(name, tensor, name in self.tables)

    def _named(self, tensor: str) -> Allocate:
        return lambda part, shape, dtype: self.allocate(f"{part}.{tensor}", shape, dtype)

    def exchange(self, groups: Sequence[Group]) -> None:
        """Train these groups from now on; a tensor of a group of the same tensors keeps its state."""
        held = {name: flat for flat in self.trainables.groups for name in flat.spans}
        self.trainables.exchange(groups)
        now = {name: flat for flat in self.trainables.groups for name in flat.spans}
        for name in list(self.states):
            if now.get(name) is not held[name]:
                del self.states[name], self.steps[name]

    def named_state(self) -> dict[str, Tensor]:
        """The parts of every tensor's state, and the count of its steps."""
        state: dict[str, Tensor] = {}
        for name, own in self.states.items():
            state[f"{_STEP}.{name}"] = torch.tensor(self.steps[name])
            state |= {f"{part}.{name}": self._saved(tensor) for part, tensor in own.items()}
        return state

    def _saved(self, tensor: Tensor) -> Tensor:
        """A part of a state as a checkpoint takes it: one that lives in files is not copied into memory."""
        return tensor.cpu() if self.settings.is_paged else tensor.clone().cpu()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `named_state` gave."""
        self.states, self.steps = {}, {}
        for flat in self.trainables.groups:
            for name in flat.spans:
                if f"{_STEP}.{name}" not in state:
                    continue
                tensor = flat.view(flat.vector.data, name)
                own = self._rule(name, tensor).fresh(tensor, self._named(name))
                for part, held in own.items():
                    held.copy_(state[f"{part}.{name}"])
                self.states[name], self.steps[name] = own, int(state[f"{_STEP}.{name}"])
