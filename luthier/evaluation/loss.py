"""The loss on held-out rows: the mean over all, and each row's own.

Shapes: N targets of a row, R rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.data.packing import targets_of
from luthier.evaluation.embedding import vectors_of
from luthier.models.call import Adapters
from luthier.models.language_model import LanguageModel
from luthier.models.outputs import Outputs
from luthier.objectives import Embedding, MultipleChoice, Regression, Reward
from luthier.objectives.contract import JointObjective, Objective, Whole, joined
from luthier.objectives.embedding import info_nce_of_each
from luthier.ops.workers import Workers
from luthier.prediction.passes import Passes, class_logits, logprobs, said_of_each
from luthier.training.companions import ALONE, Companions, with_beside
from luthier.training.loop import HeldOut, autocast
from luthier.types import Batch, Example


def held_out_loss(
    model: LanguageModel,
    objective: Objective,
    batches: Sequence[Batch],
    adapters: Adapters,
    workers: Workers,
    compute_in: torch.dtype | None = None,
    companions: Companions = ALONE,
) -> float:
    """The loss over all batches by their learned weight, nothing dropped and nothing changed.

    Where a row's loss depends on the others, all rows are taken together. companions: the other models that the objective hears.
    """
    asked = _Asked(model, adapters, workers, compute_in, companions)
    weight = sum(batch.learned_weight for batch in batches)
    if isinstance(objective, JointObjective):
        parts: dict[int, Whole] = {}

        def keep(index: int, outputs: Outputs) -> None:
            parts[index] = objective.whole(outputs)

        _over_all(asked, batches, keep)
        with torch.inference_mode():
            return float(objective.joint_loss(joined([parts[index] for index in sorted(parts)]))) / weight
    losses: dict[int, float] = {}

    def add(index: int, outputs: Outputs) -> None:
        losses[index] = float(objective.held_out_sum(outputs))

    _over_all(asked, batches, add)
    return sum(losses[index] for index in sorted(losses)) / weight


def held_out_by_task(
    model: LanguageModel,
    objective: Objective,
    batches: Mapping[str, Sequence[Batch]],
    adapters: Adapters,
    workers: Workers,
    compute_in: torch.dtype | None = None,
    companions: Companions = ALONE,
) -> HeldOut:
    """`held_out_loss` over the batches of all tasks, and of each for itself, if there are several."""

    def loss_of(chosen: Sequence[Batch]) -> float:
        return held_out_loss(model, objective, chosen, adapters, workers, compute_in, companions)

    if len(batches) == 1:
        return HeldOut(loss_of(next(iter(batches.values()))))
    of_task = {task: loss_of(chosen) for task, chosen in batches.items()}
    if isinstance(objective, JointObjective):
        return HeldOut(loss_of([batch for chosen in batches.values() for batch in chosen]), of_task)
    weights = {task: sum(batch.learned_weight for batch in chosen) for task, chosen in batches.items()}
    summed = sum(of_task[task] * weight for task, weight in weights.items())
    return HeldOut(summed / sum(weights.values()), of_task)


def losses_of_rows(
    model: LanguageModel, objective: Objective, examples: Sequence[Example], adapter: str | None, passes: Passes
) -> list[float]:
    """Each row's loss by its learned weight; where it depends on the other rows, on all of these. Every row teaches something."""
    task = "loss"
    if isinstance(objective, Embedding):
        whole = vectors_of(model, adapter, examples, objective, passes, task)
        return [float(loss) for loss in info_nce_of_each(whole, objective.temperature)]
    is_number = isinstance(objective, Regression | MultipleChoice | Reward)
    said = said_of_each(model, adapter, examples, class_logits if is_number else logprobs, passes, task)
    return [_loss_of(objective, said_N, example) for said_N, example in zip(said, examples, strict=True)]


def _loss_of(objective: Objective, said_N: Tensor, example: Example) -> float:
    """A row's loss, from the logits or the log-probabilities at its targets."""
    if isinstance(objective, Reward):
        return float(objective.losses(said_N[:, 0], targets_of(example), is_trained=False))
    weight_N = torch.from_numpy(example.weight_N).double()
    if isinstance(objective, Regression):
        assert example.value_N is not None
        loss_N = (said_N[:, 0].double() - torch.from_numpy(example.value_N)).square()
    elif isinstance(objective, MultipleChoice):
        loss_N = -said_N[:, 0].double().log_softmax(0)
    else:
        loss_N = -said_N
    return float((loss_N * weight_N).sum() / weight_N.sum())


@dataclass(frozen=True)
class _Asked:
    """Who is asked of batches, how, and by whom."""

    model: LanguageModel
    adapters: Adapters
    workers: Workers
    compute_in: torch.dtype | None
    companions: Companions

    def of(self, batch: Batch) -> Outputs:
        """What the model gives for a batch."""
        on_device = batch.to(self.model.device)
        return with_beside(self.model.forward(on_device, self.adapters), self.companions.beside(on_device))


def _over_all(asked: _Asked, batches: Sequence[Batch], take: Callable[[int, Outputs], None]) -> None:
    """Hand over what the model gives for each batch, and its index."""
    workers = asked.workers

    def share_of(worker: int) -> Callable[[], None]:
        def compute() -> None:
            for index in range(worker, len(batches), workers.count):
                if workers.are_stopping.is_set():
                    break
                with torch.inference_mode(), autocast(asked.model.device, asked.compute_in):
                    take(index, asked.of(batches[index]))

        return compute

    workers.run([share_of(worker) for worker in range(min(workers.count, len(batches)))])
