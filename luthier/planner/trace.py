"""What a recipe's steps hold in memory, found by carrying them out with tensors that only pretend.

The model is built from its config, the method attached, and an optimizer step is taken exactly as the loop takes it, by the same
operations; a tracker counts every byte on the way. The optimizer's state, which is made in the first step's update, is counted in
its passes too, as in every later step. Nothing of size is computed or allocated.

Within, what functions keep of small tensors they keep apart (`luthier.ops.kept`).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from luthier.courses import is_mixed
from luthier.methods import ADAPTER, Attachment
from luthier.methods.contract import Reference
from luthier.models.anatomy import Anatomy
from luthier.models.call import Draws
from luthier.models.language_model import LanguageModel
from luthier.models.loading import Wishes
from luthier.models.outputs import Outputs
from luthier.models.streaming import Packing, Prepare, Prepared
from luthier.ops.kept import kept_apart
from luthier.planner.answers import answers_of, draw
from luthier.planner.beside import OTHERS, ask, at_hand, heaviest, reference_of, voices_of
from luthier.planner.scorers import Seated, score
from luthier.planner.skeleton import skeleton
from luthier.planner.tracker import Peak, Tracker, all_tensors
from luthier.planner.unpacking import UnpackedOnce
from luthier.planner.work import Load, Work, load_of
from luthier.quantization.packed import QuantizedLinear, unpacked_by
from luthier.rlhf import RolloutObjective
from luthier.rlhf.critic import Critic, WithCritic
from luthier.rlhf.ppo import CRITIC, PPO
from luthier.training.companions import Companions, by_document, with_beside
from luthier.training.flat import FlatTrainables
from luthier.training.in_backward import carry_out
from luthier.training.loop import autocast, tables_of
from luthier.training.optimizers import Optimizer, PerTensor, optimizer_of
from luthier.types import Batch

WEIGHTS, PACKED, TRAINED, GRADIENTS = "weights", "quantized weights", "trained tensors", "gradients"
STATE, KEPT, HEAD, BACKWARD, UPDATE, GATHERED = (
    "optimizer state", "kept for the backward pass", "head and loss", "backward pass", "update", "gathered layers",
)  # fmt: skip
ATTACHING, PREPARING = "attaching of the method", "preparing of weights to be quantized"
PREPARED = "first tensors of the method"
_LR = 1e-3


@dataclass(frozen=True)
class Trace:
    """What was found.

    standing: what is held between steps, by part. peaks: the most that is held in each phase, with one worker at work.
    batch_tokens: of the heaviest micro-batch, which was traced. num_steps, run_tokens: of the run.
    gathered: bytes that a rank gathers at once where ranks share the weights. unit_gradient: and of the largest gradient before it is
    shared. kept_bytes: what is kept on disk of other models. trunk_bytes: and
    of the model's own lower layers.
    """

    standing: Mapping[str, int]
    peaks: Mapping[str, Peak]
    batch_tokens: int
    num_steps: int
    run_tokens: int
    num_trainable: int
    num_parameters: int
    gathered: int
    unit_gradient: int
    kept_bytes: int = 0
    trunk_bytes: int = 0


def trace(work: Work, *, for_real: bool = False, is_stopping: Callable[[], bool] = lambda: False) -> Trace:
    """Take a step without computing it; or for real, with random weights, to see that the same is found.

    Raises as attaching the method and laying out the rows do; CancelledError, soon after `is_stopping` says so.
    """
    work = work if for_real else replace(work, device=torch.device("cpu"))
    pretending = nullcontext() if for_real else FakeTensorMode(allow_non_fake_inputs=True)
    tracker = Tracker(gathers=(WEIGHTS, TRAINED) if work.is_divided else (), is_stopping=is_stopping)
    unpacked = nullcontext() if for_real else unpacked_by(UnpackedOnce(tracker))
    with torch.random.fork_rng(), _nothing_collected(looks_after=for_real), kept_apart(), unpacked:
        asking = _asked_once(work, pretending)
        with pretending, tracker:
            noting = Preparing(work.method.prepare_weights, tracker)
            model = skeleton_of(work, noting.prepare_weights)
            _note_base(model, tracker)
            with tracker.doing(ATTACHING, PREPARED):
                attachment = attached(work, model)
            work = computed_as_run(work, model)
            beside = Beside(work, model, attachment)
            for other in beside.models:
                tracker.note(all_tensors(other.hf), OTHERS)
        load = load_of(work, model, attachment)
        voices = beside.voices(load)
        with pretending, tracker:
            loading = noting.peak(tracker) | {
                each.phase: each for each in tracker.peaks.values() if each.phase == ATTACHING
            }
            found = _steps(work, model, attachment, load, voices, beside.scorers, tracker)
    kept_bytes = sum(other.disk_bytes(work.rows) for other in work.others)
    peaks = {**asking, **loading, **found.peaks}
    return replace(found, peaks=peaks, kept_bytes=kept_bytes, trunk_bytes=load.trunk_bytes)


class Preparing:
    """Notes the most that a method takes to prepare a weight before it is quantized.

    A run has one full weight at a time, the skeleton all of them: so what preparing one takes is counted beside what the packed base
    comes to. What a library takes for itself while it computes a decomposition is not seen.
    """

    def __init__(self, prepare_weights: Callable[[Anatomy], Prepare], tracker: Tracker) -> None:
        self._prepare_weights = prepare_weights
        self._tracker = tracker
        self.most = 0

    def prepare_weights(self, anatomy: Anatomy) -> Prepare:
        """As the method has it."""
        prepare, tracker = self._prepare_weights(anatomy), self._tracker

        def noted(name: str, weight_OI: Tensor, pack: Packing) -> Prepared:
            before = tracker.num_bytes
            with tracker.doing(PREPARING, PREPARED):
                made = prepare(name, weight_OI, pack)
            peak = tracker.peaks.pop(PREPARING, None)
            own = weight_OI.numel() * weight_OI.element_size()
            self.most = max(self.most, own + (0 if peak is None else peak.num_bytes - before))
            return made

        return noted

    def peak(self, tracker: Tracker) -> dict[str, Peak]:
        """The phase, once the base is as it stays; none where no weight is packed."""
        if not self.most:
            return {}
        parts = {part: tracker.held[part] for part in (WEIGHTS, PACKED, OTHERS)} | {PREPARED: self.most}
        parts = {part: count for part, count in parts.items() if count}
        return {PREPARING: Peak(sum(parts.values()), parts, PREPARING)}


def _note_base(model: LanguageModel, tracker: Tracker) -> None:
    """Count the tensors of a base as what they are."""
    tracker.note(all_tensors(model.hf), WEIGHTS)
    for layer in quantized_of(model):
        tracker.note(layer.packed.buffers(), PACKED)


def quantized_of(model: LanguageModel) -> list[QuantizedLinear]:
    """The quantized layers of a model."""
    return [module for module in model.hf.modules() if isinstance(module, QuantizedLinear)]


def _asked_once(work: Work, pretending: AbstractContextManager[object]) -> Mapping[str, Peak]:
    """The most that is held while other models are asked before step 1, and the recipe's own is not there yet."""
    most: dict[str, Peak] = {}
    for other in work.others:
        if other.kept is None:
            continue
        tracker = Tracker()
        with pretending, tracker:
            speaker = other.speaker(work.device)
        batch = heaviest(speaker, work.rows, work.training.tokens_per_micro_batch)
        with pretending, tracker:
            ask(speaker, other.kept, batch, tracker)
        for phase, peak in tracker.peaks.items():
            most[phase] = max(peak, most.get(phase, peak), key=lambda each: each.num_bytes)
    return most


@contextmanager
def _nothing_collected(*, looks_after: bool) -> Iterator[None]:
    """Within, what refers to itself in a circle stays: when Python looks for such is chance, and the plan is for the worst.

    looks_after: whether that is looked for at the end, where it is of size.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
            if looks_after:
                gc.collect()


def take_steps(work: Work) -> None:
    """Take the two steps for real and track nothing: for a look at the process from outside."""
    with torch.random.fork_rng():
        model = skeleton_of(work)
        attachment = attached(work, model)
        work = computed_as_run(work, model)
        beside = Beside(work, model, attachment)
        load = load_of(work, model, attachment)
        voices = beside.voices(load)
        trainables = FlatTrainables(attachment.groups, work.workers)
        optimizer, tracker = _optimizer(work, attachment, trainables), Tracker()
        for number in (1, 2):
            loss = _loss(work, model, attachment, load.batch, voices, number, tracker)
            trainables.add_gradients(0, _gradients(loss, trainables, tracker))
            del loss
            trainables.sum_gradients()
            optimizer.step(_LR)


def skeleton_of(work: Work, prepare_weights: Callable[[Anatomy], Prepare] | None = None) -> LanguageModel:
    """The model of a work, without its numbers. prepare_weights: in place of the method's own."""
    model = skeleton(
        work.config,
        work.dtype,
        work.fast,
        head=work.head,
        quantization=work.quantization,
        wishes=Wishes(work.method.keeps_full, prepare_weights or work.method.prepare_weights),
        tokenizer=work.tokenizer,
        num_new_tokens=work.num_new_tokens,
        device=work.device,
    )
    if work.training.gradient_checkpointing:
        model.checkpoint_layers()
    return model


def attached(work: Work, model: LanguageModel) -> Attachment:
    """Its method at work on it, and the critic where the objective trains one: on the same base, or on the copy that stays frozen."""
    attachment = work.method.attach(model, ADAPTER, work.seed, fast=work.training.fast.lora)
    objective = work.objective
    if not isinstance(objective, PPO):
        return attachment
    base = skeleton_of(work) if work.method.tunes_base else model
    fast = work.training.fast.lora
    critic = Critic(base, objective.critic_rank, work.seed + 1, {}, objective.value_slope, fast=fast)
    return WithCritic(attachment, critic, objective.value_lr_factor)


def computed_as_run(work: Work, model: LanguageModel) -> Work:
    """The work in the number format that a run computes it in, once the method is attached."""
    mixed = work.training.autocast == "auto" and is_mixed(work.method, model)
    return replace(work, autocast=torch.bfloat16) if mixed else work


class Beside:
    """The models that a work's objective hears beside the one that trains, whose method is attached."""

    def __init__(self, work: Work, model: LanguageModel, attachment: Attachment) -> None:
        self.work, self.model = work, model
        self.critics = {CRITIC: attachment.critic} if isinstance(attachment, WithCritic) else {}
        objective = work.objective
        asks_copy = isinstance(objective, RolloutObjective) and objective.asks_base and work.method.tunes_base
        self.copy = skeleton_of(work) if asks_copy and not self.critics else None
        self.speakers = at_hand(work.others, work.device)
        frozen = next((each.speaker.model for each in self.critics.values()), self.copy or model)
        self.scorers = tuple(scorer.seated(frozen, number) for number, scorer in enumerate(work.scorers))
        roles = [companion.role for companion in work.objective.companions if companion.model is None]
        made = work.method.reference(model, work.seed, fast=work.training.fast.lora) if roles else None
        self.references: dict[str, Reference | None] = dict.fromkeys(roles, made)

    @property
    def models(self) -> list[LanguageModel]:
        """Those that are not the one that trains, each with the adapters upon it."""
        speakers = [*self.speakers.values(), *(critic.speaker for critic in self.critics.values())]
        speakers += [scorer.speaker for scorer in self.scorers]
        found = [speaker.model for speaker in speakers] + ([] if self.copy is None else [self.copy])
        return [model for model in found if model is not self.model]

    def voices(self, load: Load) -> Companions:
        """What they say of the heaviest batch of the work's rows."""
        rows, batch = load.rows, load.batch
        for critic in self.critics.values():
            critic.rows = by_document(rows)
        others = voices_of(self.work.others, self.speakers, self.model, rows, batch)
        own = {role: reference_of(made, self.model, rows, batch) for role, made in self.references.items()}
        return Companions({**others.voices, **own, **self.critics})


def _steps(
    work: Work,
    model: LanguageModel,
    attachment: Attachment,
    load: Load,
    voices: Companions,
    scorers: Sequence[Seated],
    tracker: Tracker,
) -> Trace:
    settings = work.training
    trainables = FlatTrainables(attachment.groups, 0 if settings.update_in_backward else work.workers)
    _note_base(model, tracker)
    for scorer in scorers:
        tracker.note(scorer.tensors, OTHERS)
    tracker.note((flat.vector.data for flat in trainables.groups), TRAINED)
    tracker.note((vector for vectors in trainables.gradients for vector in vectors), GRADIENTS)
    optimizer = _optimizer(work, attachment, trainables)
    model.hf.get_submodule(model.anatomy.trunk).register_forward_hook(lambda *_: _begin_head(tracker))
    tracker.begin_anew()
    if load.texts is not None:
        loss = _loss(work, model, attachment, load.texts, voices, 1, tracker)
        if work.is_divided:
            _give_away(loss, trainables, tracker)
        else:
            _gradients(loss, trainables, tracker)
        del loss
    if isinstance(optimizer, PerTensor) and settings.update_in_backward:
        for number in (1, 2):
            loss = _loss(work, model, attachment, load.batch, voices, number, tracker)
            with tracker.doing(BACKWARD, STATE if number == 1 else BACKWARD):
                carry_out(loss, optimizer, _LR, lambda name, gradient: None)
            del loss
    else:
        loss = _loss(work, model, attachment, load.batch, voices, 1, tracker)
        gradients = None if work.is_divided else _gradients(loss, trainables, tracker)
        if gradients is None:
            _give_away(loss, trainables, tracker)
        with tracker.doing("adding up", BACKWARD):
            if gradients is not None:
                trainables.add_gradients(0, gradients)
            del gradients, loss
            trainables.sum_gradients()
        with tracker.doing(UPDATE, STATE):
            optimizer.step(_LR)
        _as_in_later_steps(tracker)
    for answers in answers_of(work, attachment):
        draw(answers, attachment, tracker)
    for scorer in scorers:
        score(scorer, load.rows, tracker)
    standing = {part: count for part, count in tracker.held.items() if count}
    parameters = sum(parameter.numel() for parameter in model.hf.parameters())
    parameters += sum(layer.packed.shape[0] * layer.packed.shape[1] for layer in quantized_of(model))
    return Trace(
        standing, tracker.peaks, load.batch.num_real_tokens, load.num_steps, load.run_tokens, attachment.num_trainable,
        parameters, *units_of(model, attachment, work.autocast),
    )  # fmt: skip


def units_of(model: LanguageModel, attachment: Attachment, autocast: torch.dtype | None) -> tuple[int, int]:
    """Of the parts that ranks gather one at a time, the embedding, each layer and the head: the bytes of the two neighbours that have
    most, in the number format that they are computed in, and those of the gradient of the one that trains most."""
    anatomy = model.anatomy
    names = [anatomy.embedding, *(layer.name for layer in anatomy.layers), anatomy.head]
    units = [{id(each): each for each in all_tensors(model.hf.get_submodule(name))} for name in names]
    trained = {id(each) for each in attachment.trainables.values()}
    bytes_U = [_bytes_of(unit.values(), autocast) for unit in units]
    gradients = [_bytes_of(each for key, each in unit.items() if key in trained) for unit in units]
    return max(map(sum, pairwise(bytes_U))), max(gradients)


def _bytes_of(tensors: Iterable[Tensor], dtype: torch.dtype | None = None) -> int:
    """What tensors take by themselves, whatever they are views of; in a smaller number format, if one is given."""
    most = 8 if dtype is None else dtype.itemsize
    return sum(tensor.numel() * min(tensor.element_size(), most) for tensor in tensors)


def _as_in_later_steps(tracker: Tracker) -> None:
    """Count the optimizer's state, which is there from the end of the first step on, in the passes of that step too."""
    state = tracker.held[STATE]
    for phase, peak in tracker.peaks.items():
        if phase != UPDATE:
            parts = {**peak.parts, STATE: peak.parts.get(STATE, 0) + state}
            tracker.peaks[phase] = Peak(peak.num_bytes + state, parts, phase)


def _begin_head(tracker: Tracker) -> None:
    tracker.part = HEAD


def _optimizer(work: Work, attachment: Attachment, trainables: FlatTrainables) -> Optimizer:
    """The optimizer; one whose state is in files has it in memory here, where it is counted under its own name."""
    settings, tables = work.training, tables_of(attachment)
    if settings.optimizer.is_paged:
        return PerTensor(trainables, settings.optimizer, tables)
    return optimizer_of(settings.optimizer, trainables, tables, Path(), by_tensor=settings.update_in_backward)


def _loss(
    work: Work,
    model: LanguageModel,
    attachment: Attachment,
    batch: Batch,
    voices: Companions,
    number: int,
    tracker: Tracker,
) -> Tensor:
    """The loss of one micro-batch, as the loop has it computed."""
    with tracker.doing("forward pass", KEPT), autocast(model.device, work.autocast):
        batch = batch.to(model.device)
        beside = voices.beside(batch)

        def forward(repeat: int) -> Outputs:
            return with_beside(model.forward(batch, attachment.adapter, Draws(work.seed, number, repeat)), beside)

        return attachment.loss_sum(forward, work.objective.loss_sum)


def _gradients(loss: Tensor, trainables: FlatTrainables, tracker: Tracker) -> list[Tensor | None]:
    with tracker.doing(BACKWARD, BACKWARD):
        return list(torch.autograd.grad(loss, trainables.tensors, allow_unused=True))


def _give_away(loss: Tensor, trainables: FlatTrainables, tracker: Tracker) -> None:
    """The backward pass of a rank that keeps its share of each gradient alone: the whole one is gone as soon as the ranks have it."""

    def drop(tensor: Tensor) -> None:
        tensor.grad = None

    hooks = [tensor.register_post_accumulate_grad_hook(drop) for tensor in trainables.tensors]
    with tracker.doing(BACKWARD, BACKWARD):
        loss.backward()
    for hook in hooks:
        hook.remove()
