"""The loss of models that write, row by row, and the measures that are made of it.

Shapes: R rows, N learned targets of a batch, S segments of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from luthier.data.batches import evaluation_batches
from luthier.data.mixture import by_task
from luthier.data.placeholders import with_placeholders
from luthier.evaluation.candidates import Candidate, comparisons
from luthier.evaluation.intervals import Estimate, bootstrap_mean
from luthier.evaluation.measure import LOSS_MARGIN, Comparison, Measure
from luthier.evaluation.metrics import perplexity
from luthier.models.language_model import LanguageModel
from luthier.ops.workers import Workers
from luthier.prediction.passes import Progress
from luthier.types import Batch, Example


@dataclass(frozen=True)
class RowLosses:
    """Each row's loss summed over its learned tokens (nats, weighted), and the sum of their weights."""

    nats_R: Tensor
    weight_R: Tensor

    def __add__(self, other: RowLosses) -> RowLosses:
        return RowLosses(self.nats_R + other.nats_R, self.weight_R + other.weight_R)


def losses_by_row(
    candidate: Candidate, examples: Sequence[Example], num_rows: int, budget: int, workers: Workers, progress: Progress
) -> RowLosses:
    """The candidate's losses, on all worker threads; only rows with learned tokens, in their order."""
    model = candidate.model
    virtual = model.num_virtual(candidate.adapter), model.num_virtual_answer(candidate.adapter)
    placed = [with_placeholders(example, *virtual) for example in examples]
    budget = max(budget, *(example.num_tokens for example in placed))  # a row too long for training can be measured
    batches = evaluation_batches(placed, budget, workers.count, model.layout, model.pad_id)
    task = f"{candidate.name}: loss"
    done: list[int] = []  # appending is atomic: workers share it

    def share_of(worker: int) -> Callable[[], RowLosses]:
        def compute() -> RowLosses:
            total = RowLosses(*torch.zeros(2, num_rows, dtype=torch.float64))
            for batch in batches[worker :: workers.count]:
                if workers.are_stopping.is_set():
                    break
                total += row_losses(model, candidate.adapter, batch, num_rows)
                done.append(len(set(batch.documents)))
                progress(task, sum(done), len(examples))
            return total

        return compute

    busy = range(min(workers.count, len(batches)))
    first, *others = workers.run([share_of(worker) for worker in busy])
    total = sum(others, start=first)
    counts = total.weight_R > 0
    return RowLosses(total.nats_R[counts], total.weight_R[counts])


def row_losses(model: LanguageModel, adapter: str | None, batch: Batch, num_rows: int) -> RowLosses:
    """The loss of one batch, told apart by the document that each target belongs to; rows not in it are 0."""
    on_device = batch.to(model.device)
    with torch.inference_mode():
        logprob_N = model.forward(on_device, adapter).logprob_N.double().cpu()
    targets = batch.targets
    weight_N = targets.weight_N.double()
    start_S = torch.tensor([segment.start for segment in batch.segments])
    document_S = torch.tensor(batch.documents)
    document_N = document_S[torch.bucketize(targets.source_N, start_S, right=True) - 1]
    zeros_R = torch.zeros(num_rows, dtype=torch.float64)
    nats_R = zeros_R.index_add(0, document_N, -logprob_N * weight_N)
    return RowLosses(nats_R, zeros_R.index_add(0, document_N, weight_N))


def loss_measures(losses: Sequence[RowLosses]) -> list[Measure]:
    """Loss per learned token over all rows, with rows as what is drawn anew; and perplexity, its exponential."""
    weights = losses[0].weight_R.tolist()
    means = [(row.nats_R / row.weight_R).tolist() for row in losses]
    estimates = tuple(bootstrap_mean(mean, weights) for mean in means)
    exponentials = tuple(Estimate(perplexity(e.value), perplexity(e.low), perplexity(e.high)) for e in estimates)
    only_a_scale = tuple(Comparison(None, None) for _ in losses[1:])
    return [
        Measure("loss", False, len(weights), estimates, comparisons(means, weights), LOSS_MARGIN, "likelihood"),
        Measure("perplexity", False, len(weights), exponentials, only_a_scale),
    ]


def mean_loss(losses: Sequence[Sequence[float]]) -> Measure:
    """The mean of each candidate's losses, one a row."""
    estimates = tuple(bootstrap_mean(each) for each in losses)
    return Measure("loss", False, len(losses[0]), estimates, comparisons(losses), LOSS_MARGIN, "likelihood")


def task_measures(losses: Sequence[RowLosses], examples: Sequence[Example]) -> list[Measure]:
    """The loss of each task, where the rows are of several; losses: a row an example that learns something."""
    tasks = by_task(examples)
    if len(tasks) == 1:
        return []
    measures = []
    for task in tasks:
        is_of_R = torch.tensor([(example.origin.task or "") == task for example in examples])
        own = [RowLosses(rows.nats_R[is_of_R], rows.weight_R[is_of_R]) for rows in losses]
        measures.append(replace(loss_measures(own)[0], name=f"loss: {task or 'no task'}", witness="part"))
    return measures
