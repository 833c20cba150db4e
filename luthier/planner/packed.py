"""Which layers of a base are held in few bits, and in which form: as a recipe says, or as the files have them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from luthier.models.anatomy import Anatomy
from luthier.models.gguf_packed import GGUFBlocks
from luthier.models.loading import layers_to_quantize
from luthier.models.sources import ModelSource, stored_form_of
from luthier.quantization.formats import COMPUTE, blank
from luthier.quantization.packed import PackedWeight
from luthier.quantization.settings import QuantizationSettings

Shape = tuple[int, int]


@dataclass(frozen=True)
class PackedBase:
    """chosen: the layers that may be packed. blank: a layer's weight of any numbers; None where the files have it in numbers."""

    chosen: Callable[[Anatomy], tuple[str, ...]]
    blank: Callable[[str, Shape, torch.device], PackedWeight | None]


def as_settings_say(settings: QuantizationSettings) -> PackedBase:
    """What a recipe's quantization packs."""
    return PackedBase(
        lambda anatomy: layers_to_quantize(anatomy, settings),
        lambda name, shape, device: blank(shape, settings, device),
    )


def as_stored(source: ModelSource) -> PackedBase | None:
    """What comes packed in safetensors files; None where nothing does. Raises RecipeError for a form that is not read."""
    form = stored_form_of(source)
    if form is None:
        return None
    return PackedBase(
        lambda anatomy: tuple(name for name in anatomy.linears if form.packs(name)),
        lambda name, shape, device: form.blank(shape, device),
    )


def as_in_blocks(source: ModelSource, config: PreTrainedConfig, settings: QuantizationSettings) -> PackedBase | None:
    """What a GGUF file has packed, by the formats that its header names; None for what is no such file.

    Raises: as `GGUFBlocks`.
    """
    if source.gguf is None:
        return None
    blocks = GGUFBlocks(source.gguf, COMPUTE[settings.compute])
    return PackedBase(
        lambda anatomy: layers_to_quantize(anatomy, settings),
        lambda name, shape, device: blocks.blank(name, shape, config, device),
    )
