"""What an objective owes the loop.

It says how an example is made from a rendered row, and turns what the model gives at the targets into a loss. The loop
divides by the whole step's weight, so that any cut into micro-batches gives the same gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Self

from torch import Tensor

from luthier.models.heads import ClassHead
from luthier.models.outputs import Outputs
from luthier.types import Example, Gives, Origin, Rendered, Settings


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
    def loss_sum(self, outputs: Outputs) -> Tensor:
        """The loss summed over a micro-batch's targets, before the division by the step's weight; shape ()."""

    def held_out_sum(self, outputs: Outputs) -> Tensor:
        """The same as it is measured on held-out rows: without what only training adds to it."""
        return self.loss_sum(outputs)

    @property
    def embedding_noise(self) -> float:
        """α of the noise on the embeddings while it trains; 0 for none."""
        return 0.0

    def settled(self, labels: tuple[str, ...]) -> Self:
        """The same with what it takes from the labels of the training rows, each once, in order."""
        return self

    def head(self, seed: int) -> ClassHead | None:
        """The head over classes that the model needs; None for one over words."""
        return None
