"""A run's model as a folder of its own: what it learned merged into the weights, which may then be quantized again.

Merging unpacks the very base that was trained on. Quantizing the merged weights rounds them anew, and what that loses is
measured: the distance of the weights, and the loss on the rows that the run held out, read back from the written files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.errors import RecipeError, UsageError
from luthier.methods import ADAPTER, AdapterMethod
from luthier.models.anatomy import is_transposed, weight_of
from luthier.models.language_model import LanguageModel
from luthier.models.loading import DTYPES, layers_to_quantize, load_model
from luthier.models.writing import write_model
from luthier.objectives import Reward
from luthier.prediction.scale import read_scale, write_scale
from luthier.quantization.formats import quantize
from luthier.quantization.packed import PackedWeight
from luthier.quantization.settings import QuantizationSettings
from luthier.recipe import Recipe
from luthier.recipe.base import head_of
from luthier.store.files import write_folder
from luthier.studies.held_out import held_out_losses
from luthier.tuned import load_merged, load_run

Announce = Callable[[str], None]


@dataclass(frozen=True)
class Lost:
    """What quantizing the merged weights lost.

    relative_error: ‖W − Q(W)‖ / ‖W‖ over all quantized layers. worst: the layer with the largest such error of its own.
    """

    relative_error: float
    worst: str
    worst_error: float


@dataclass(frozen=True)
class Exported:
    """A written model.

    num_bytes: of its weights. lost: None where it was not quantized. losses: nats a learned token of the run and of the written
    model on the rows that the run held out; None if there are none.
    """

    out: Path
    num_bytes: int
    lost: Lost | None
    losses: dict[str, float] | None

    def as_json(self) -> dict[str, Any]:
        """The result as one JSON document."""
        return {**asdict(self), "out": str(self.out)}


def export_merged(
    folder: Path,
    recipe: Recipe,
    out: Path,
    announce: Announce,
    *,
    dtype: str | None = None,
    quantization: QuantizationSettings | None = None,
) -> Exported:
    """Write a run's model as an ordinary transformers folder; quantized, in the form of bitsandbytes.

    dtype: the number format of what is not quantized, `fp32`, `bf16` or `fp16`; None: that of the model in the run.
    Raises UsageError if the folder is there already; RecipeError for a method that does not merge and layers that cannot be quantized.
    """
    if out.exists():
        raise UsageError(f"{out} is there already.", "Choose another folder with --out.")
    lost = _write(load_merged(folder, recipe, announce), out, dtype, quantization)
    if isinstance(recipe.objective, Reward):
        write_scale(read_scale(folder / recipe.method.output_folder), out)
    num_bytes = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    return Exported(out, num_bytes, lost, _losses(folder, recipe, out, announce))


def _write(
    model: LanguageModel, out: Path, dtype: str | None, quantization: QuantizationSettings | None
) -> Lost | None:
    packed, lost = ({}, None) if quantization is None else _quantized(model, quantization)
    into = model.dtype if dtype is None else DTYPES[dtype]
    write_folder(out, lambda partial: write_model(model, partial, into, packed))
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


def _losses(folder: Path, recipe: Recipe, out: Path, announce: Announce) -> dict[str, float] | None:
    """Of the run as it is and of the written files, read back."""
    if recipe.data.validation == "none":
        return None
    run = load_run(folder, announce)
    settings = recipe.model.at(out)
    written = load_model(settings, announce, head=head_of(recipe))
    adapter = ADAPTER if isinstance(recipe.method, AdapterMethod) else None
    return held_out_losses(recipe, {"run": (run, adapter), "written": (written, None)}, announce)
