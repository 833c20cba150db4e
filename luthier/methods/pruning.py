"""Smaller layers cut out of a model's: the channels whose weights are the largest are kept, and so are their weights.

The channels of the residual stream are chosen once for the whole model, those inside a feed-forward layer for each layer;
of each attention head every ρ-th channel is kept, so that rotary pairs stay pairs and keep their frequencies.
Shapes: D width of the stream, F of the feed-forward, E of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from luthier.models.anatomy import LayerAnatomy, is_linear, weight_of
from luthier.models.language_model import LanguageModel


@dataclass(frozen=True)
class Kept:
    """The channels of the stream that are kept, and what every width is divided by."""

    channels: Tensor
    reduction: int


def strongest_channels(model: LanguageModel, count: int) -> Tensor:
    """The channels of the stream with the largest sum of |W| in the embedding, in their order."""
    table_VD = model.hf.get_submodule(model.anatomy.embedding).get_parameter("weight")
    return table_VD.float().abs().sum(0).topk(count).indices.sort().values.cpu()


@torch.no_grad()
def prune_layer(
    model: LanguageModel, layer: LayerAnatomy, small: PreTrainedModel, own: LayerAnatomy, kept: Kept
) -> None:
    """Fill a small layer with the kept part of a model's layer, tensor by tensor."""
    inner = _inner_channels(model, layer, kept)
    outputs = (layer.attention_out, layer.roles.get("cross_attention_out"))
    attentions = tuple(f"{name}." for name in (layer.attention, layer.cross_attention) if name is not None)
    for name, target in small.get_submodule(own.name).named_parameters():
        module_name, _, part = name.rpartition(".")
        source = _source(model, layer, module_name)
        is_weight = is_linear(source) and part == "weight"
        cut = weight_of(source) if is_weight else source.get_parameter(part)
        is_transposed = is_weight and isinstance(small.get_submodule(f"{own.name}.{module_name}"), Conv1D)
        shape = tuple(reversed(target.shape)) if is_transposed else tuple(target.shape)
        is_output = f"{layer.name}.{module_name}" in outputs
        in_attention = is_output or f"{layer.name}.{module_name}".startswith(attentions)
        for axis, size in enumerate(shape):
            if cut.shape[axis] == size:
                continue
            # heads are what a projection gives, what the output projection takes, and what norms inside attention are of
            is_headed = in_attention and (not is_linear(source) or (axis == 1) == is_output)
            cut = cut.index_select(axis, _indices(cut.shape[axis], size, is_headed, inner, kept).to(cut.device))
        target.copy_(cut.t() if is_transposed else cut)


def _source(model: LanguageModel, layer: LayerAnatomy, name: str) -> nn.Module:
    """A layer's module of that name, or its stack's first layer's, if only that has one: T5's bias by position."""
    first = next(other for other in model.anatomy.layers if other.stack == layer.stack)
    found = dict(model.hf.get_submodule(layer.name).named_modules()).get(name)
    return model.hf.get_submodule(f"{first.name}.{name}") if found is None else found


def _inner_channels(model: LanguageModel, layer: LayerAnatomy, kept: Kept) -> Tensor:
    """The feed-forward's channels with the largest sum of |W| in its last linear layer, in their order."""
    strength_F = weight_of(model.hf.get_submodule(layer.down)).float().abs().sum(0)
    return strength_F.topk(len(strength_F) // kept.reduction).indices.sort().values


def _indices(size: int, smaller: int, is_headed: bool, inner: Tensor, kept: Kept) -> Tensor:
    """Which of `size` channels become the `smaller` ones."""
    if is_headed:
        return _of_heads(size, kept.reduction)
    if smaller == len(kept.channels):
        return kept.channels
    if smaller == len(inner):
        return inner
    # gate and up in one matrix
    halves = size // 2
    return torch.cat([inner, inner + halves])


def _of_heads(size: int, reduction: int) -> Tensor:
    """Every ρ-th channel."""
    return torch.arange(0, size, reduction)[: size // reduction]
