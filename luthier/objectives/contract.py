"""What an objective owes the loop.

It says how an example is made from a rendered row, and turns log-probabilities of the targets into a loss. The loop
computes what the loss receives, and divides by the whole step's weight, so that any cut into micro-batches gives the
same gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from luthier.types import Example, Origin, Rendered, Settings, Targets


class Objective(Settings, ABC):
    """The settings of an objective; its `kind` names it in a recipe."""

    @abstractmethod
    def example(self, rendered: Rendered, document: int, origin: Origin) -> Example:
        """What one rendered row teaches."""

    @abstractmethod
    def loss_sum(self, logprob_N: Tensor, targets: Targets) -> Tensor:
        """The loss (nats) summed over a micro-batch's targets, before the division by the step's weight; shape ()."""
