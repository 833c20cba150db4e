"""Where a run stands: what the loop counts, how held-out losses move it, and its way into a checkpoint and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.data.batches import Steps
from luthier.errors import NotFinite, RunMismatch
from luthier.methods.contract import Attachment
from luthier.training.checkpoint import Checkpoint
from luthier.training.flat import FlatTrainables
from luthier.training.optimizers import Optimizer
from luthier.training.settings import EarlyStopping

CALMER = "Begin a new run with a lower training.peak_lr or a longer training.schedule.warmup_fraction."
"""The mend where a loss, a gradient or a weight is not finite."""


@dataclass
class Progress:
    """Where a run stands, apart from its tensors and its place in the data.

    unmeasured: the numbers of the last step, if its evaluation did not come to an end; they are written down once it has.
    """

    step: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    evaluations_since_best: int = 0
    stopped_early: bool = False
    unmeasured: dict[str, Any] | None = None


def judge(progress: Progress, loss: float, stopping: EarlyStopping | None) -> None:
    """Note whether a held-out loss is the best yet, and whether patience is at its end. Raises NotFinite."""
    if not math.isfinite(loss):
        raise NotFinite(f"After step {progress.step} the held-out loss is {loss}; the step was not kept.", CALMER)
    needed = 0.0 if stopping is None else stopping.min_delta
    if progress.best_loss is None or loss < progress.best_loss - needed:
        progress.best_loss, progress.best_step, progress.evaluations_since_best = loss, progress.step, 0
        return
    progress.evaluations_since_best += 1
    progress.stopped_early = stopping is not None and progress.evaluations_since_best >= stopping.patience


def progress_of(metrics: Sequence[Mapping[str, Any]], stopping: EarlyStopping | None) -> Progress:
    """Where a run stood when it had written these lines of metrics."""
    progress = Progress()
    for line in metrics:
        progress.step = int(line["step"])
        if "validation_loss" in line:
            judge(progress, float(line["validation_loss"]), stopping)
    return progress


def snapshot(
    progress: Progress,
    trainables: FlatTrainables,
    optimizer: Optimizer,
    place: dict[str, Any],
    attachment: Attachment,
) -> Checkpoint:
    """Everything that the next step depends on. place: of the batches, as their `state_dict`."""
    state = {"progress": vars(progress).copy(), "batches": place}
    tensors = trainables.named(), optimizer.named_state(), attachment.state()
    return Checkpoint(progress.step, *tensors, state)


def steps_written(checkpoint: Checkpoint) -> int:
    """How many steps' metrics are written down where a checkpoint was kept: all, but for a last one that was not yet measured."""
    return checkpoint.step - (checkpoint.state["progress"].get("unmeasured") is not None)


def restore(
    checkpoint: Checkpoint,
    trainables: FlatTrainables,
    optimizer: Optimizer,
    batches: Steps,
    attachment: Attachment,
) -> Progress:
    """Take up a snapshot; the next step is the one that would have followed it. Raises RunMismatch for another method's."""
    held = {name: tuple(tensor.shape) for name, tensor in checkpoint.trainables.items()}
    if held != attachment.trained_shapes(checkpoint.method):
        raise RunMismatch(
            f"The checkpoint of step {checkpoint.step} holds {len(held)} tensors, which are not those that the recipe "
            "trains now in name and shape.",
            "Undo what was changed in recipe.resolved.yaml, or begin a new run with 'luthier train'.",
            field="method",
        )
    attachment.load_state(checkpoint.method)
    optimizer.exchange(attachment.groups)
    trainables.load(checkpoint.trainables)
    optimizer.load_state(checkpoint.optimizer)
    batches.load_state_dict(checkpoint.state["batches"])
    return Progress(**checkpoint.state["progress"])
