"""What an objective owes the loop.

It says how an example is made from a rendered row, and turns log-probabilities of the targets into a loss. The loop
computes what the loss receives, and divides by the whole step's weight, so that any cut into micro-batches gives the
same gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Self

from torch import Tensor

from luthier.models.heads import ClassHead
from luthier.types import Example, Gives, Origin, Rendered, Settings, Targets


class Objective(Settings, ABC):
    """The settings of an objective; its `kind` names it in a recipe.

    takes: what rows must hold for it to learn from.
    """

    takes: ClassVar[Gives] = "text"

    kind: str

    @abstractmethod
    def example(self, rendered: Rendered, document: int, origin: Origin) -> Example:
        """What one rendered row teaches. Raises DataError for a row that it cannot teach."""

    @abstractmethod
    def loss_sum(self, logprob_N: Tensor, targets: Targets) -> Tensor:
        """The loss (nats) summed over a micro-batch's targets, before the division by the step's weight; shape ()."""

    def settled(self, labels: tuple[str, ...]) -> Self:
        """The same with what it takes from the labels of the training rows, each once, in order."""
        return self

    def head(self, seed: int) -> ClassHead | None:
        """The head over classes that the model needs; None for one over words."""
        return None
