"""The mean loss over held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from luthier.models.call import Adapters
from luthier.models.language_model import LanguageModel
from luthier.models.outputs import Outputs
from luthier.objectives.contract import JointObjective, Objective, Whole, joined
from luthier.ops.workers import Workers
from luthier.training.loop import autocast
from luthier.types import Batch


def held_out_loss(
    model: LanguageModel,
    objective: Objective,
    batches: Sequence[Batch],
    adapters: Adapters,
    workers: Workers,
    compute_in: torch.dtype | None = None,
) -> float:
    """The loss over all batches by their learned weight, nothing dropped and nothing changed.

    Where a row's loss depends on the others, all rows are taken together.
    """
    weight = sum(batch.learned_weight for batch in batches)
    if isinstance(objective, JointObjective):
        parts: dict[int, Whole] = {}

        def keep(index: int, outputs: Outputs) -> None:
            parts[index] = objective.whole(outputs)

        _over_all(model, batches, adapters, workers, compute_in, keep)
        with torch.inference_mode():
            return float(objective.joint_loss(joined([parts[index] for index in sorted(parts)]))) / weight
    losses: dict[int, float] = {}

    def add(index: int, outputs: Outputs) -> None:
        losses[index] = float(objective.held_out_sum(outputs))

    _over_all(model, batches, adapters, workers, compute_in, add)
    return sum(losses[index] for index in sorted(losses)) / weight


def _over_all(
    model: LanguageModel,
    batches: Sequence[Batch],
    adapters: Adapters,
    workers: Workers,
    compute_in: torch.dtype | None,
    take: Callable[[int, Outputs], None],
) -> None:
    """Hand over what the model gives for each batch, and its index."""

    def share_of(worker: int) -> Callable[[], None]:
        def compute() -> None:
            for index in range(worker, len(batches), workers.count):
                if workers.are_stopping.is_set():
                    break
                with torch.inference_mode(), autocast(model.device, compute_in):
                    take(index, model.forward(batches[index].to(model.device), adapters))

        return compute

    workers.run([share_of(worker) for worker in range(min(workers.count, len(batches)))])
