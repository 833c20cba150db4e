"""A model as an ordinary transformers folder, its weights quantized again if asked, and what that loses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from luthier.errors import RecipeError
from luthier.models.anatomy import is_transposed, weight_of
from luthier.models.language_model import LanguageModel
from luthier.models.loading import DTYPES, layers_to_quantize
from luthier.models.writing import SHARD_BYTES, write_model
from luthier.quantization.formats import quantize
from luthier.quantization.packed import PackedWeight
from luthier.quantization.settings import QuantizationSettings


@dataclass(frozen=True)
class Lost:
    """What quantizing the merged weights lost.

    relative_error: ‖W − Q(W)‖ / ‖W‖ over all quantized layers. worst: the layer with the largest such error of its own.
    """

    relative_error: float
    worst: str
    worst_error: float


def write_merged(
    model: LanguageModel,
    folder: Path,
    dtype: str | None,
    quantization: QuantizationSettings | None,
    shard_bytes: int = SHARD_BYTES,
) -> Lost | None:
    """Write a model without adapters; what quantizing it lost, if it was.

    dtype: the number format of what is not quantized, `fp32`, `bf16` or `fp16`; None: the model's own.
    shard_bytes: most bytes of weights in one file.
    Raises RecipeError for layers that cannot be quantized.
    """
    packed, lost = ({}, None) if quantization is None else _quantized(model, quantization)
    write_model(model, folder, model.dtype if dtype is None else DTYPES[dtype], packed, shard_bytes)
    return lost


def _quantized(model: LanguageModel, settings: QuantizationSettings) -> tuple[dict[str, PackedWeight], Lost]:
    """The weights that the settings choose, packed, and what that loses."""
    packed: dict[str, PackedWeight] = {}
    errors: dict[str, tuple[float, float]] = {}
    for name in layers_to_quantize(model.anatomy, settings):
        layer = model.hf.get_submodule(name)
        if is_transposed(layer) or name in model.anatomy.experts:
            raise RecipeError(
                f"bitsandbytes has no form for {name}, whose weight is stored {'turned round' if is_transposed(layer) else 'with others'}.",
                "Leave --quantize out.",
                field="quantization",
            )
        weight_OI = weight_of(layer).detach().float()
        packed[name] = quantize(name, weight_OI, settings)
        errors[name] = _energy(weight_OI - packed[name].dense(torch.float32)), _energy(weight_OI)
    of_layer = {name: (off / whole) ** 0.5 if whole else 0.0 for name, (off, whole) in errors.items()}
    worst = max(of_layer, key=lambda name: of_layer[name])
    off, whole = (sum(parts) for parts in zip(*errors.values(), strict=True))
    return packed, Lost((off / whole) ** 0.5 if whole else 0.0, worst, of_layer[worst])


def _energy(weight_OI: Tensor) -> float:
    return float(weight_OI.double().square().sum())
