"""What is written down of a step beside its loss: means over the whole step, whatever it is cut into."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from luthier.models.outputs import Outputs
from luthier.objectives.contract import Objective, Sums

LossOf = Callable[[Outputs], Tensor]


class Tally:
    """Sums by name, and how many numbers each is of."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}

    def add(self, measured: Mapping[str, Sums]) -> None:
        """Take in what was measured of a part of the step."""
        for name, (total, count) in measured.items():
            before, number = self._sums.get(name, (0.0, 0))
            self._sums[name] = before + float(total), number + count

    def noting(self, objective: Objective, loss_of: LossOf) -> LossOf:
        """The same loss, which also takes in what the objective measures of a micro-batch."""

        def noted(outputs: Outputs) -> Tensor:
            loss = loss_of(outputs)
            with torch.no_grad():
                self.add(objective.measured(outputs))
            return loss

        return noted

    def joined(self, others: Iterable[Tally]) -> Tally:
        """This and others as one, in order."""
        whole = Tally()
        for part in (self, *others):
            for name, (total, count) in part._sums.items():
                before, number = whole._sums.get(name, (0.0, 0))
                whole._sums[name] = before + total, number + count
        return whole

    def means(self) -> dict[str, float]:
        """The means by name."""
        return {name: total / count for name, (total, count) in self._sums.items() if count}
