"""A model written as an ordinary transformers folder: weights, config and tokenizer."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.models.experts import SplitExperts
from luthier.models.language_model import LanguageModel
from luthier.quantization.bitsandbytes_files import file_tensors, model_settings
from luthier.quantization.packed import PackedWeight, QuantizedLinear

SHARD_BYTES = 5 * 10**9
"""Most bytes of one file of weights: what file systems, hubs and slow lines still take as a whole."""


def write_model(
    model: LanguageModel,
    folder: Path,
    dtype: torch.dtype,
    packed: Mapping[str, PackedWeight] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model without adapters as safetensors, config and tokenizer files into `folder`, weights as `dtype`.

    packed: the weights, by their layers' names, to be written instead of the layers' own, all of one format of bitsandbytes'.
    shard_bytes: most bytes of weights in one file; `model.safetensors.index.json` says which file has which of several.
    """
    weights = {name: tensor.to(dtype) for name, tensor in weights_of(model).items()}
    anatomy = model.anatomy
    config = copy.deepcopy(model.hf.config)
    config.dtype = dtype  # transformers notes that of the weights in memory, which is fp32 where they trained
    if packed:
        for name, weight in packed.items():
            del weights[f"{name}.weight"]
            weights |= {f"{name}.{ending}": tensor for ending, tensor in file_tensors(weight, dtype).items()}
        whole = {*anatomy.linears, *anatomy.routers, *anatomy.head_linears} - packed.keys() - {*anatomy.experts}
        config.quantization_config = model_settings(next(iter(packed.values())), dtype, sorted(whole))
    model.hf.save_pretrained(folder, state_dict=weights, max_shard_size=shard_bytes)
    config.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)


def weights_of(model: LanguageModel) -> dict[str, Tensor]:
    """A model's weights by name, unpacked, each once: tied ones under the first of their names, by which transformers ties them."""
    weights = _unpacked(model)
    anatomy = model.anatomy
    copies = [place for place in anatomy.embedding_places if place != anatomy.embedding]
    for place in (*copies, *([anatomy.head] if anatomy.is_head_tied else [])):
        weights.pop(f"{place}.weight", None)
    return weights


@torch.no_grad()
def put_weights(model: LanguageModel, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Copy tensors into a model whose weights are not quantized, each by the name that `weights_of` has it under."""
    own: dict[str, Tensor] = dict(model.hf.state_dict())
    mixtures = {name: layer for name, layer in model.hf.named_modules() if isinstance(layer, SplitExperts)}
    for name, tensor in weights:
        place, _, part = name.rpartition(".")
        if place in mixtures:  # `weights_of` stacks copies of these
            mixtures[place].put(part, tensor)
        else:
            own[name].copy_(tensor)


def _unpacked(model: LanguageModel) -> dict[str, Tensor]:
    """The model's weights by name; packed ones are unpacked, and in the order of axes that files have."""
    weights: dict[str, Any] = dict(model.hf.state_dict())
    for name, layer in model.hf.named_modules():
        if isinstance(layer, SplitExperts):
            weights = _without(weights, f"{name}.") | {f"{name}.{own}": each for own, each in layer.stacked().items()}
        elif isinstance(layer, QuantizedLinear) and name not in model.anatomy.experts:
            weights = _without(weights, f"{name}.weight.")
            weights[f"{name}.weight"] = layer.dense_layer().get_parameter("weight")
    return weights


def _without(weights: dict[str, Tensor], beginning: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights.items() if not name.startswith(beginning)}
