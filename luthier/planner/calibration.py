"""How long a recipe's steps take on this machine, from a few passes of a model of one and of two layers.

The passes are those of the run: the same method, base, optimizer and fast paths, by as many workers, on rows of the same
kind; only the depth is less and the numbers are random. With t₁ and t₂ the seconds of a pass at one and at two layers,
a pass of L layers takes t₁ + (L − 1)(t₂ − t₁).
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
from luthier.planner.trace import Trace, Work, attached, load_of, skeleton_of
from luthier.quantization.packed import QuantizedLinear
from luthier.training.loop import autocast

_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_PASSES = 3
_SECONDS = 5.0


def seconds_of(work: Work, trace: Trace) -> float | None:
    """Seconds of all steps of a run; None for a model that cannot be cut to two layers."""
    field = next((name for name in _DEPTHS if name in work.config.to_dict()), None)
    if field is None or work.config.is_encoder_decoder:
        return None
    depth = int(getattr(work.config, field))
    one, two = (_seconds_a_token(replace(work, config=_cut(work.config, field, layers))) for layers in (1, 2))
    return (one + (depth - 1) * max(two - one, 0.0)) * trace.run_tokens


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
    batch = load_of(work, model, attachment).batch
    trained = [tensor for group in attachment.groups for tensor in group.tensors.values()]

    def one_pass() -> None:
        def forward(repeat: int) -> Outputs:
            return model.forward(batch, attachment.adapter, Draws(work.seed, 1, repeat))

        with autocast(model.device, work.autocast):
            if isinstance(work.objective, JointObjective):  # a step cut into micro-batches is computed twice
                with torch.no_grad():
                    work.objective.whole(forward(0))
            loss = attachment.loss_sum(forward, work.objective.loss_sum)
        torch.autograd.grad(loss, trained, allow_unused=True)

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
