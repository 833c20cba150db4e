"""What a fine-tuning method owes the rest of the package.

A method is a frozen settings object (its file, its paper) that can `attach` itself to a model under a name. What comes
back, the attachment, is all that the loop, the checkpoints and the export ask:

- which tensors train, in fp32, grouped by learning rate and decay, and the lowest layer that needs a backward pass;
- how the trained state is written for other tools, and how it is folded into the base, if it can be.

Nothing else of a method is known outside its file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import nn

from luthier.models.language_model import LanguageModel
from luthier.types import Settings

ADAPTER = "default"
"""The name that a run's own adapter bears."""


@dataclass(frozen=True)
class Traits:
    """Facts about a method that do not depend on its settings."""

    merges: bool
    deep_backward: bool
    over_4bit: bool
    identity_at_start: bool


@dataclass(frozen=True)
class Group:
    """Trainable tensors by name that share a learning rate: the recipe's, times `lr_factor`."""

    tensors: dict[str, nn.Parameter]
    lr_factor: float = 1.0
    decays: bool = True


class Attachment(ABC):
    """A method at work on one model."""

    @property
    @abstractmethod
    def groups(self) -> tuple[Group, ...]:
        """The trainable tensors; each belongs to exactly one group."""

    @property
    @abstractmethod
    def lowest_layer(self) -> int | None:
        """The first layer that needs a backward pass; None where it reaches the embedding."""

    @property
    @abstractmethod
    def adapter(self) -> str | None:
        """The name to pass as `adapters` so that the method takes part; None if the method is the model itself."""

    @property
    def draws(self) -> bool:
        """Whether training draws for each document (dropout): documents then cannot share the tokens of a prefix."""
        return False

    @abstractmethod
    def write(self, folder: Path, announce: Callable[[str], None]) -> None:
        """Write the trained state into `folder` (which exists) as files that other tools read."""

    @abstractmethod
    def merge(self) -> None:
        """Fold the trained state into the base for good; the attachment is used up."""

    @property
    def trainables(self) -> dict[str, nn.Parameter]:
        """All trainable tensors by name."""
        return {name: tensor for group in self.groups for name, tensor in group.tensors.items()}

    @property
    def num_trainable(self) -> int:
        """How many numbers train."""
        return sum(tensor.numel() for tensor in self.trainables.values())


class Method(Settings, ABC):
    """The settings of a method; its `kind` names it in a recipe."""

    paper: ClassVar[str]
    traits: ClassVar[Traits]
    default_lr: ClassVar[float]
    output_folder: ClassVar[str]

    @abstractmethod
    def attach(self, model: LanguageModel, name: str, seed: int, *, fast: bool = True) -> Attachment:
        """Put the method to work on a frozen model.

        name: how `LanguageModel.forward(adapters=…)` calls it. seed: decides the random start, each tensor by its name.
        fast: use the operations of `ops`. Raises RecipeError, naming the field, if the model has no place for it.
        """
