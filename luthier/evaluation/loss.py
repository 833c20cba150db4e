"""The mean loss over held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from luthier.models.call import Adapters
from luthier.models.language_model import LanguageModel
from luthier.objectives.contract import Objective
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
    """Nats per learned token (weighted) over all batches, nothing dropped and nothing changed."""

    def share_of(worker: int) -> Callable[[], float]:
        def compute() -> float:
            loss = 0.0
            for batch in batches[worker :: workers.count]:
                if workers.are_stopping.is_set():
                    break
                on_device = batch.to(model.device)
                with torch.inference_mode(), autocast(model.device, compute_in):
                    loss += float(objective.held_out_sum(model.forward(on_device, adapters)))
            return loss

        return compute

    busy = range(min(workers.count, len(batches)))
    total = sum(workers.run([share_of(worker) for worker in busy]))
    return total / sum(batch.learned_weight for batch in batches)
