"""How long a recipe's steps take on this machine, from a few passes of a model of one and of two layers.

The passes are those of the run: the same method, base, optimizer and fast paths, by as many workers, on rows of the same
kind; only the depth is less and the numbers are random. With t₁ and t₂ the seconds of a pass at one and at two layers,
a pass of L layers takes t₁ + (L − 1)(t₂ − t₁). Each model beside it adds layers of its own in the same way.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from transformers import PreTrainedConfig

from luthier.models.call import Draws
from luthier.models.language_model import LanguageModel
from luthier.models.outputs import Outputs
from luthier.objectives import JointObjective
from luthier.ops.workers import Workers
from luthier.planner.trace import Beside, Trace, attached, computed_as_run, skeleton_of
from luthier.planner.work import Work, load_of
from luthier.quantization.packed import QuantizedLinear
from luthier.training.companions import with_beside
from luthier.training.loop import autocast

_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_PASSES = 3
_SECONDS = 5.0


def seconds_of(work: Work, trace: Trace) -> float | None:
    """Seconds of all steps of a run; None where a model cannot be cut to two layers."""
    configs = [work.config, *(other.config for other in work.others)]
    fields = [next((name for name in _DEPTHS if name in config.to_dict()), None) for config in configs]
    if None in fields or any(config.is_encoder_decoder for config in configs):
        return None
    named = [(config, field) for config, field in zip(configs, fields, strict=True) if field is not None]

    def at(deeper: int | None) -> float:
        """Seconds a token where all models have one layer, but for one that has two."""
        own, *others = [_cut(config, field, 1 + (index == deeper)) for index, (config, field) in enumerate(named)]
        beside = tuple(replace(other, config=config) for other, config in zip(work.others, others, strict=True))
        return _seconds_a_token(replace(work, config=own, others=beside, scorers=()))

    shallow = total = at(None)
    for index, (config, field) in enumerate(named):
        if index == 0 or work.others[index - 1].kept is None:
            total += (int(getattr(config, field)) - 1) * max(at(index) - shallow, 0.0)
    return total * trace.run_tokens


def _cut(config: PreTrainedConfig, field: str, layers: int) -> PreTrainedConfig:
    """The config with fewer layers."""
    cut = copy.deepcopy(config)
    setattr(cut, field, layers)
    kinds = cut.to_dict().get("layer_types")
    if kinds is not None:
        cut.layer_types = kinds[:layers]
    return cut


def _seconds_a_token(work: Work) -> float:
    """Wall seconds for a token, with all workers at work."""
    model = skeleton_of(work)
    _fill(model)
    attachment = attached(work, model)
    work = computed_as_run(work, model)
    load = load_of(work, model, attachment)
    batch = load.batch.to(model.device)
    others = Beside(work, model, attachment)
    for speaker in others.speakers.values():
        _fill(speaker.model)
    voices = others.voices(load)
    trained = [tensor for group in attachment.groups for tensor in group.tensors.values()]

    def one_pass() -> None:
        beside = voices.beside(batch)

        def forward(repeat: int) -> Outputs:
            return with_beside(model.forward(batch, attachment.adapter, Draws(work.seed, 1, repeat)), beside)

        with autocast(model.device, work.autocast):
            if isinstance(work.objective, JointObjective):  # a step cut into micro-batches is computed twice
                with torch.no_grad():
                    work.objective.whole(forward(0))
            loss = attachment.loss_sum(forward, work.objective.loss_sum)
        torch.autograd.grad(loss, trained, allow_unused=True)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)  # the device computes on by itself: the lap ends when it has

    with Workers(work.workers) as workers:
        laps = _laps(lambda: workers.run([one_pass] * work.workers))
    return statistics.median(laps) / (batch.num_real_tokens * work.workers)


def _fill(model: LanguageModel) -> None:
    """Give quantized weights numbers, which `skeleton` does not: what memory held before may be slow to compute with."""
    for module in model.hf.modules():
        if isinstance(module, QuantizedLinear):
            for buffer in module.packed.buffers():
                if buffer.is_floating_point():
                    buffer.fill_(0.01)
                else:
                    buffer.random_(0, 16)


def _laps(run: Callable[[], object]) -> list[float]:
    """The wall seconds of some runs after a first one that is not counted."""
    run()
    laps: list[float] = []
    while len(laps) < _PASSES and sum(laps) < _SECONDS:
        began = time.perf_counter()
        run()
        laps.append(time.perf_counter() - began)
    return laps
