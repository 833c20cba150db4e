"""What is written down of a step beside its loss: means over the whole step, and over the rows of each task, whatever it is cut into."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from luthier.models.outputs import Outputs
from luthier.objectives.contract import Objective, Sums
from luthier.objectives.likelihood import summed_by_row
from luthier.types import Batch, Targets

LossOf = Callable[[Outputs], Tensor]

_Weighed = dict[str, tuple[float, float]]
"""A sum, and the weight that it is of, by name."""


class Tally:
    """Sums by name and by task, and the weight that each is of."""

    def __init__(self) -> None:
        self._sums: _Weighed = {}
        self._of_tasks: _Weighed = {}

    def add(self, measured: Mapping[str, Sums]) -> None:
        """Take in what was measured of a part of the step."""
        for name, (total, weight) in measured.items():
            _take_in(self._sums, name, float(total), weight)

    def noting(self, objective: Objective, loss_of: LossOf, batch: Batch) -> LossOf:
        """The loss of a micro-batch, which also takes in what the objective measures of it, and what each task costs in it."""

        def noted(outputs: Outputs) -> Tensor:
            loss = loss_of(outputs)
            with torch.no_grad():
                self.add(objective.measured(outputs))
                if batch.tasks:
                    self._add_tasks(batch.tasks, objective.row_losses(outputs), outputs.targets)
            return loss

        return noted

    def _add_tasks(self, tasks: Sequence[str], losses_R: Tensor | None, targets: Targets) -> None:
        """Take in rows of several tasks. Shapes: R rows, up to the last that has a target."""
        if losses_R is None:
            return
        weights_R = summed_by_row(targets.weight_N, targets)
        for task, loss, weight in zip(tasks, losses_R.tolist(), weights_R.tolist(), strict=False):
            _take_in(self._of_tasks, task, loss, weight)

    def joined(self, others: Iterable[Tally]) -> Tally:
        """This and others as one, in order."""
        whole = Tally()
        for part in (self, *others):
            for sums, own in ((whole._sums, part._sums), (whole._of_tasks, part._of_tasks)):
                for name, (total, weight) in own.items():
                    _take_in(sums, name, total, weight)
        return whole

    def means(self) -> dict[str, float]:
        """The means by name."""
        return _means(self._sums)

    def losses_by_task(self) -> dict[str, float]:
        """The loss of each task's rows, by name, as held-out rows are measured; none of a run that has one task alone."""
        return dict(sorted(_means(self._of_tasks).items()))


def _take_in(sums: _Weighed, name: str, total: float, weight: float) -> None:
    before, weighed = sums.get(name, (0.0, 0.0))
    sums[name] = before + total, weighed + weight


def _means(sums: _Weighed) -> dict[str, float]:
    return {name: total / weight for name, (total, weight) in sums.items() if weight}
