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
from luthier.ops.shortage import is_shortage, shortage_told
from luthier.ops.workers import Workers
from luthier.training.checkpoint import Checkpoint
from luthier.training.companions import ALONE, Companions, with_beside
from luthier.training.flat import FlatTrainables
from luthier.training.in_backward import descend
from luthier.training.joint import gradients_of, surrogate
from luthier.training.memory import HighWater, give_back, memory_bytes
from luthier.training.optimizers import Optimizer, PerTensor, optimizer_of
from luthier.training.progress import CALMER, Progress, judge, restore, snapshot
from luthier.training.schedule import lr_factor
from luthier.training.settings import TrainingSettings
from luthier.training.stop import StopRequest
from luthier.training.tally import LossOf, Tally
from luthier.types import Batch


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

    def save_what_is_new(place: dict[str, Any] | None = None) -> None:
        if last_saved != progress.step:
            checkpoint(place)

    last_saved, memory = progress.step, HighWater(model.device, plan.settings.memory_limit_gb)
    with StopRequest() as stop:
        while progress.unmeasured is not None or (progress.step < plan.num_steps and not progress.stopped_early):
            metrics = progress.unmeasured
            if metrics is None:
                began = time.perf_counter()
                save = partial(
                    save_what_is_new, batches.state_dict()
                )  # what fails on its way to a step may have left its place
                with _saved_if_it_fails(save):
                    step = next(batches)
                job = _Job(
                    model, attachment, objective, plan, trainables, workers, memory, progress.step + 1, companions
                )
                with _saved_if_it_fails(save, RunMismatch):  # which is raised before the weights change
                    metrics = _metrics_of(job, step, batches, optimizer, outside.announce)
                progress.step += 1
                metrics |= _cost(began, step, memory)
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
                judge(progress, held_out.loss, plan.settings.early_stopping)
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


def _cost(began: float, step: Step, memory: HighWater) -> dict[str, Any]:
    """What a step took, in time and memory. began: by `time.perf_counter`."""
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "tokens_per_second": step.real_tokens / seconds,
        "memory_bytes": memory_bytes(memory.device),
        "peak_memory_bytes": memory.ever(),
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
    memory: HighWater
    number: int
    companions: Companions = ALONE

    @property
    def lr(self) -> float:
        """The step's learning rate."""
        return self.plan.peak_lr * lr_factor(self.plan.settings.schedule, self.number, self.plan.num_steps)

    def check_start(self, loss: float) -> None:
        """Raise GateRefusal where a run's first loss says that the model cannot read the rows; its weights are untouched then."""
        worst = self.plan.worst_start
        if self.number != 1 or worst is None or loss <= worst:
            return
        raise GateRefusal(
            f"Before any training the loss is {loss:.1f} nats a token, and {worst:.1f} is more than a guess among all tokens costs: "
            "the model cannot read these rows. The weights were not touched.",
            "Check that the tokenizer is the model's own, that the chat template is the one it knows, and that its weights are "
            "whole. If they are, set model.trust_tokenizer to true.",
            field="model",
        )

    def metrics(self, step: Step, loss: float, norm: float, tally: Tally) -> dict[str, Any]:
        """What is written down of the step."""
        of_tasks = tally.losses_by_task()
        return {
            "step": self.number,
            "epoch": step.epoch,
            "loss": loss,
            "learned_tokens": step.learned_tokens,
            "real_tokens": step.real_tokens,
            "lr": self.lr,
            "grad_norm": norm,
            **tally.means(),
            **({"loss_by_task": of_tasks} if of_tasks else {}),
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
            f"{CALMER} The first rows of this step are {', '.join(str(row) for row in step.rows[:8])} (counted from 0).",
        )
    job.check_start(loss)
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
    """Compute one step's loss, and update within its backward pass; return its metrics.

    Raises ResourceError if memory does not suffice: a step that has moved some tensors cannot be computed anew.
    """
    (batch,) = step.micro_batches
    tally = Tally()
    with shortage_told(
        "Set training.gradient_checkpointing to true, lower data.max_length or training.rows_per_step, or take "
        "training.update_in_backward out, so that a step may be cut into smaller micro-batches."
    ):
        with autocast(job.model.device, job.plan.autocast):
            forward = _forward(job, batch.to(job.model.device))
            loss_of = tally.noting(job.objective, job.objective.loss_sum, batch)
            loss = job.attachment.loss_sum(forward, loss_of) / step.learned_weight
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NotFinite(f"At step {job.number} the loss is {value}; the weights were not touched.", CALMER)
        job.check_start(value)
        told = batches.heed(tally.means())
        norm = descend(loss, optimizer, job.lr)
    return {**job.metrics(step, value, norm, tally), **told}


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
    job.memory.begin()
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
                    noted = tallies[worker].noting(job.objective, loss_of, batch)
                    loss = job.attachment.loss_sum(_forward(job, on_device), noted)
                job.memory.check()  # highest between the two passes, or, where layers are recomputed, in the second
                trainables.add_gradients(worker, torch.autograd.grad(loss, trainables.tensors, allow_unused=True))
                job.memory.check()
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


def _check_finite(trainables: FlatTrainables, step: int) -> None:
    """Raise NotFinite if an update made a weight NaN or infinite, which the loss shows only in the next step."""
    for flat in trainables.groups:
        if not bool(torch.isfinite(torch.stack(torch.aminmax(flat.vector.detach()))).all()):
            raise NotFinite(f"After step {step} some weights are NaN or infinite; the step was not kept.", CALMER)
