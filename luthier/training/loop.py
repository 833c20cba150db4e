"""The one loop: batches in, trained tensors out, whatever the method and the objective.

A step computes its micro-batches on the workers, sums the gradients in a fixed order, clips, and updates. The gradient
is that of the loss over the whole step: each micro-batch's summed loss is divided by the step's learned weight, so that
8 × 1 row and 1 × 8 rows give the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.data.batches import Step, Steps
from luthier.errors import GateRefusal, Interrupted, LuthierError, NotFinite, ResourceError, RunMismatch
from luthier.methods.contract import Attachment, StepDone
from luthier.models.call import Draws
from luthier.models.language_model import LanguageModel
from luthier.models.noise import noise_embeddings
from luthier.models.outputs import Outputs
from luthier.objectives.contract import JointObjective, Objective, Whole, joined
from luthier.ops.shortage import is_shortage
from luthier.ops.workers import Workers
from luthier.training.checkpoint import Checkpoint
from luthier.training.companions import ALONE, Companions, with_beside
from luthier.training.flat import FlatTrainables
from luthier.training.in_backward import descend
from luthier.training.joint import gradients_of, surrogate
from luthier.training.memory import give_back, memory_bytes, peak_memory_bytes
from luthier.training.optimizers import Optimizer, PerTensor, optimizer_of
from luthier.training.schedule import lr_factor
from luthier.training.settings import EarlyStopping, TrainingSettings
from luthier.training.stop import StopRequest
from luthier.training.tally import LossOf, Tally
from luthier.types import Batch

_CALMER = "Begin a new run with a lower training.peak_lr or a longer training.schedule.warmup_fraction."


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


@dataclass(frozen=True)
class Plan:
    """The numbers of a run that are settled before step 1.

    worst_start: the highest loss that a sound model can have at its first step; None where nothing is known of it.
    """

    settings: TrainingSettings
    seed: int
    num_steps: int
    peak_lr: float
    evaluate_every: int
    checkpoint_every: int
    autocast: torch.dtype | None = None
    worst_start: float | None = None


@dataclass(frozen=True)
class HeldOut:
    """The loss on held-out rows. by_task: on those of each task, where there are several. measured: what else was, by name."""

    loss: float
    by_task: Mapping[str, float] = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Outside:
    """What the loop tells and asks the rest of the program.

    evaluate: the held-out loss of the model as it is, or None without held-out rows. save: keep a checkpoint.
    record: take a step's metrics. folder: where an optimizer may keep its state.
    """

    evaluate: Callable[[], HeldOut] | None
    save: Callable[[Checkpoint], object]
    record: Callable[[dict[str, Any]], None]
    announce: Callable[[str], None]
    folder: Path


def train(
    model: LanguageModel,
    attachment: Attachment,
    objective: Objective,
    batches: Steps,
    plan: Plan,
    outside: Outside,
    workers: Workers,
    resume_from: Checkpoint | None = None,
    companions: Companions = ALONE,
) -> Progress:
    """Train until the plan's last step, or until early stopping; return where it ended.

    companions: the other models that the objective hears.
    Raises Interrupted after Ctrl-C or SIGTERM, the state saved; NotFinite when a loss or gradient is NaN or infinite,
    before it reaches the weights. Whatever else the batches or the evaluation raise on purpose leaves a saved state too.
    """
    is_early = plan.settings.update_in_backward
    if objective.embedding_noise:
        noise_embeddings(model.hf, model.anatomy)
    trainables = FlatTrainables(attachment.groups, 0 if is_early else workers.count)
    optimizer = optimizer_of(
        plan.settings.optimizer, trainables, tables_of(attachment), outside.folder, by_tensor=is_early
    )
    progress = Progress()
    if resume_from is not None:
        progress = restore(resume_from, trainables, optimizer, batches, attachment)

    def checkpoint(place: dict[str, Any] | None = None) -> None:
        _check_finite(trainables, progress.step)
        outside.save(snapshot(progress, trainables, optimizer, place or batches.state_dict(), attachment))

    last_saved = progress.step

    def save_what_is_new(place: dict[str, Any] | None = None) -> None:
        if last_saved != progress.step:
            checkpoint(place)

    with StopRequest() as stop:
        while progress.unmeasured is not None or (progress.step < plan.num_steps and not progress.stopped_early):
            metrics = progress.unmeasured
            if metrics is None:
                began = time.perf_counter()
                place = batches.state_dict()  # what fails on its way to the next step may have left it
                save = partial(save_what_is_new, place)
                with _saved_if_it_fails(save):
                    step = next(batches)
                job = _Job(model, attachment, objective, plan, trainables, workers, progress.step + 1, companions)
                with _saved_if_it_fails(save, RunMismatch):  # which is raised before the weights change
                    metrics = _metrics_of(job, step, batches, optimizer, outside.announce)
                progress.step += 1
                metrics |= _cost(began, step, model)
                progress.stopped_early |= step.ends_run
            is_last = progress.step == plan.num_steps or progress.stopped_early
            if stop.signal is not None and not is_last:
                outside.announce("Stopping once the state is saved; asked again, at once.")
            if outside.evaluate is not None and (progress.step % plan.evaluate_every == 0 or is_last):
                progress.unmeasured = metrics
                with _saved_if_it_fails(save_what_is_new):
                    held_out = outside.evaluate()
                progress.unmeasured = None
                metrics |= {"validation_loss": held_out.loss, **held_out.measured}
                if held_out.by_task:
                    metrics["validation_loss_by_task"] = dict(held_out.by_task)
                _judge(progress, held_out.loss, plan.settings.early_stopping)
            outside.record(metrics)
            is_best = progress.best_step == progress.step
            if progress.step % plan.checkpoint_every == 0 or is_last or is_best or progress.stopped_early:
                checkpoint()
                last_saved = progress.step
            if stop.signal is not None and not is_last:
                save_what_is_new()
                raise Interrupted(
                    f"Stopped after step {progress.step} of {plan.num_steps}; the state is saved.",
                    exit_code=stop.exit_code,
                )
    return progress


@contextmanager
def _saved_if_it_fails(save: Callable[[], None], kind: type[LuthierError] = LuthierError) -> Iterator[None]:
    """Within: an error of a kind leaves once the state is saved; but for that of a broken model, which is not worth keeping."""
    try:
        yield
    except kind as error:
        if not isinstance(error, NotFinite):
            save()
        raise


def _cost(began: float, step: Step, model: LanguageModel) -> dict[str, Any]:
    """What a step took, in time and memory. began: by `time.perf_counter`."""
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "tokens_per_second": step.real_tokens / seconds,
        "memory_bytes": memory_bytes(model.device),
        "peak_memory_bytes": peak_memory_bytes(model.device),
    }


@dataclass(frozen=True)
class _Job:
    """What a step's gradient is computed with. number: the step's, counted from 1."""

    model: LanguageModel
    attachment: Attachment
    objective: Objective
    plan: Plan
    trainables: FlatTrainables
    workers: Workers
    number: int
    companions: Companions = ALONE

    @property
    def lr(self) -> float:
        """The step's learning rate."""
        return self.plan.peak_lr * lr_factor(self.plan.settings.schedule, self.number, self.plan.num_steps)

    def metrics(self, step: Step, loss: float, norm: float, tally: Tally) -> dict[str, Any]:
        """What is written down of the step."""
        return {
            "step": self.number,
            "epoch": step.epoch,
            "loss": loss,
            "learned_tokens": step.learned_tokens,
            "real_tokens": step.real_tokens,
            "lr": self.lr,
            "grad_norm": norm,
            **tally.means(),
            **step.measured,
        }


def _metrics_of(
    job: _Job, step: Step, batches: Steps, optimizer: Optimizer, announce: Callable[[str], None]
) -> dict[str, Any]:
    """Take a step in the way that the settings ask for; its metrics."""
    if job.plan.settings.update_in_backward and isinstance(optimizer, PerTensor):
        return _step_in_backward(job, step, batches, optimizer)
    return _step(job, step, batches, optimizer, announce)


def _step(
    job: _Job, step: Step, batches: Steps, optimizer: Optimizer, announce: Callable[[str], None]
) -> dict[str, Any]:
    """Compute one step's gradient and update; return its metrics."""
    plan, number, attachment, trainables = job.plan, job.number, job.attachment, job.trainables
    loss, gradients, tally = _gradient_that_fits(job, step, batches, announce)
    norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients])))
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise NotFinite(
            f"At step {number} the loss is {loss} and the gradient's norm {norm}; the weights were not touched.",
            f"{_CALMER} The first rows of this step are {', '.join(str(row) for row in step.rows[:8])} (counted from 0).",
        )
    if number == 1 and plan.worst_start is not None and loss > plan.worst_start:
        raise GateRefusal(
            f"Before any training the loss is {loss:.1f} nats a token, worse than a guess among all words: the model cannot read "
            "these rows. The weights were not touched.",
            "Check that the tokenizer is the model's own, that the chat template is the one it knows, and that its weights are whole.",
            field="model",
        )
    told = batches.heed(tally.means())
    clip = plan.settings.clip_norm
    if clip is not None and norm > clip:
        for gradient in gradients:
            gradient.mul_(clip / norm)
    optimizer.step(job.lr)
    if attachment.after_step(StepDone(number, plan.num_steps, trainables.by_name(gradients))):
        optimizer.exchange(attachment.groups)
    return {**job.metrics(step, loss, norm, tally), **told}


def _step_in_backward(job: _Job, step: Step, batches: Steps, optimizer: PerTensor) -> dict[str, Any]:
    """Compute one step's loss, and update within its backward pass; return its metrics."""
    (batch,) = step.micro_batches
    tally = Tally()
    with autocast(job.model.device, job.plan.autocast):
        forward = _forward(job, batch.to(job.model.device))
        loss_of = tally.noting(job.objective, job.objective.loss_sum)
        loss = job.attachment.loss_sum(forward, loss_of) / step.learned_weight
    if not math.isfinite(float(loss.detach())):
        raise NotFinite(
            f"At step {job.number} the loss is {float(loss.detach())}; the weights were not touched.", _CALMER
        )
    told = batches.heed(tally.means())
    norm = descend(loss, optimizer, job.lr)
    return {**job.metrics(step, float(loss.detach()), norm, tally), **told}


def _gradient_that_fits(
    job: _Job, step: Step, batches: Steps, announce: Callable[[str], None]
) -> tuple[float, list[Tensor], Tally]:
    """The step's loss and gradient and what is written down beside them, in micro-batches half as large as often as memory does not suffice.

    Raises ResourceError if it does not suffice for the longest row either.
    """
    while True:
        try:
            return _gradient(job, step)
        except (MemoryError, RuntimeError) as error:
            if not is_shortage(error):
                raise
            said = str(error).strip()
        smaller = batches.halve()
        if smaller is None:
            raise ResourceError(
                f"Memory does not suffice for step {job.number}, even one row at a time ({said[:200]}).",
                "Set training.gradient_checkpointing to true, lower data.max_length or training.workers, or set quantization.kind to nf4.",
                field="training.tokens_per_micro_batch",
            )
        give_back(job.model.device)
        announce(
            f"Memory did not suffice for step {job.number}. It is computed anew, and all that follow, with at most {smaller} "
            "tokens in a micro-batch: the same result, a little slower."
        )
        step = batches.again(step)


def _gradient(job: _Job, step: Step) -> tuple[float, list[Tensor], Tally]:
    """The loss of a whole step, its gradient as one flat vector for each group, and what is written down beside them.

    The sums over micro-batches are divided once, at the end and in fp32: a small divisor would cost half precision bits.
    Raises MemoryError where the process holds more than it may.
    """
    model, trainables, workers = job.model, job.trainables, job.workers
    limit = job.plan.settings.memory_limit_gb
    trainables.clear_gradients()
    losses, known, whole = _losses(job, step)
    tallies = {worker: Tally() for worker in sorted(set(step.worker_of))}

    def share_of(worker: int) -> Callable[[], float]:
        def compute() -> float:
            loss_sum = 0.0
            for batch, owner, loss_of in zip(step.micro_batches, step.worker_of, losses, strict=True):
                if owner != worker or workers.are_stopping.is_set():
                    continue
                on_device = batch.to(model.device)
                with autocast(model.device, job.plan.autocast):
                    noted = tallies[worker].noting(job.objective, loss_of)
                    loss = job.attachment.loss_sum(_forward(job, on_device), noted)
                if (
                    limit is not None and memory_bytes(model.device) > limit * 10**9
                ):  # it is highest between the two passes
                    raise MemoryError(f"training.memory_limit_gb is {limit:g}")
                trainables.add_gradients(worker, torch.autograd.grad(loss, trainables.tensors, allow_unused=True))
                loss_sum += float(loss.detach())
            return loss_sum

        return compute

    summed = sum(workers.run([share_of(worker) for worker in tallies]))
    tally = whole.joined(tallies.values())
    loss_sum = summed if known is None else known
    gradients = trainables.sum_gradients()
    for gradient in gradients:
        gradient.div_(step.learned_weight)
    extra = job.attachment.extra_loss()
    if extra is None:
        return loss_sum / step.learned_weight, gradients, tally
    trainables.add_gradients(0, torch.autograd.grad(extra, trainables.tensors, allow_unused=True))
    return loss_sum / step.learned_weight + float(extra.detach()), gradients, tally


def _losses(job: _Job, step: Step) -> tuple[Sequence[LossOf], float | None, Tally]:
    """What each micro-batch's loss is, the summed loss of the step where that is known already, and what is known beside it."""
    objective, model = job.objective, job.model
    if not isinstance(objective, JointObjective):
        return [objective.loss_sum] * len(step.micro_batches), None, Tally()
    parts: dict[int, Whole] = {}

    def share_of(worker: int) -> Callable[[], None]:
        def compute() -> None:
            for index, owner in enumerate(step.worker_of):
                if owner != worker or job.workers.are_stopping.is_set():
                    continue
                on_device = step.micro_batches[index].to(model.device)
                with torch.no_grad(), autocast(model.device, job.plan.autocast):
                    parts[index] = objective.whole(_forward(job, on_device)(0))

        return compute

    job.workers.run([share_of(worker) for worker in sorted(set(step.worker_of))])
    in_order, tally = [parts[index] for index in range(len(step.micro_batches))], Tally()
    known, gradients = gradients_of(objective, in_order)
    tally.add(objective.measured_jointly(joined(in_order)))
    return [partial(surrogate, objective, gradient_MD=gradient_MD) for gradient_MD in gradients], known, tally


def _forward(job: _Job, batch: Batch) -> Callable[[int], Outputs]:
    """The forward pass over a micro-batch; passes of different numbers have different draws, and hear the same companions."""
    beside = job.companions.beside(batch)

    def forward(repeat: int) -> Outputs:
        draws = Draws(job.plan.seed, job.number, repeat, job.objective.embedding_noise)
        return with_beside(job.model.forward(batch, job.attachment.adapter, draws), beside)

    return forward


def tables_of(attachment: Attachment) -> frozenset[str]:
    """The trained tensors of the embedding and the head: their rows are looked up, or give logits."""
    anatomy = attachment.model.anatomy
    places = tuple(f"{name}." for name in (*anatomy.embedding_places, *anatomy.head_linears))
    return frozenset(name for name in attachment.trainables if name.startswith(places))


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Within: matrix products in `dtype`; None leaves everything as it is."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def _judge(progress: Progress, loss: float, stopping: EarlyStopping | None) -> None:
    """Note whether a held-out loss is the best yet, and whether patience is at its end. Raises NotFinite."""
    if not math.isfinite(loss):
        raise NotFinite(f"After step {progress.step} the held-out loss is {loss}; the step was not kept.", _CALMER)
    needed = 0.0 if stopping is None else stopping.min_delta
    if progress.best_loss is None or loss < progress.best_loss - needed:
        progress.best_loss, progress.best_step, progress.evaluations_since_best = loss, progress.step, 0
        return
    progress.evaluations_since_best += 1
    progress.stopped_early = stopping is not None and progress.evaluations_since_best >= stopping.patience


def _check_finite(trainables: FlatTrainables, step: int) -> None:
    """Raise NotFinite if an update made a weight NaN or infinite, which the loss shows only in the next step."""
    for flat in trainables.groups:
        if not bool(torch.isfinite(torch.stack(torch.aminmax(flat.vector.detach()))).all()):
            raise NotFinite(f"After step {step} some weights are NaN or infinite; the step was not kept.", _CALMER)


def progress_of(metrics: Sequence[Mapping[str, Any]], stopping: EarlyStopping | None) -> Progress:
    """Where a run stood when it had written these lines of metrics."""
    progress = Progress()
    for line in metrics:
        progress.step = int(line["step"])
        if "validation_loss" in line:
            _judge(progress, float(line["validation_loss"]), stopping)
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
