"""A base that comes packed is planned as its files have it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Type
from models.test_gguf_packed import written
from quantization.test_affine import GPTQ_SETTINGS
from quantization.test_affine import packed_folder as gptq_folder
from torch import nn

from luthier.models.language_model import FastModel, LanguageModel
from luthier.models.loading import Wishes, load_model
from luthier.models.settings import ModelSettings
from luthier.models.sources import locate, read_config
from luthier.planner.packed import PackedBase, as_in_blocks, as_stored
from luthier.planner.skeleton import skeleton
from luthier.quantization.packed import QuantizedLinear
from luthier.quantization.settings import QuantizationSettings


def quiet(sentence: str) -> None:
    """Say nothing."""


def sizes(model: LanguageModel) -> dict[str, int]:
    """The bytes of each packed layer."""
    layers: list[tuple[str, nn.Module]] = list(model.hf.named_modules())
    return {name: layer.packed.num_bytes for name, layer in layers if isinstance(layer, QuantizedLinear)}


def planned(settings: ModelSettings, base: PackedBase | None) -> dict[str, int]:
    config = read_config(locate(settings, quiet))
    assert base is not None
    return sizes(skeleton(config, torch.float32, FastModel(), head=None, quantization=base, wishes=Wishes()))


@pytest.mark.parametrize("format_", [Type.Q4_0, Type.Q8_0, None], ids=str)
def test_a_gguf_file_is_planned_by_the_formats_in_its_header(format_: Type | None, tmp_path: Path) -> None:
    settings = ModelSettings(name=str(written(tmp_path, format_)), dtype="fp32", device="cpu")
    quantization = QuantizationSettings(kind="gguf", skip=("down_proj",))
    source = locate(settings, quiet)
    found = planned(settings, as_in_blocks(source, read_config(source), quantization))
    assert found == sizes(load_model(settings, quiet, quantization=quantization))
    assert len(found) == (0 if format_ is None else 6)


def test_a_model_that_comes_quantized_is_planned_as_it_is_loaded(tiny_model: Path, tmp_path: Path) -> None:
    gptq_folder(tiny_model, tmp_path / "packed", "gptq", GPTQ_SETTINGS)
    settings = ModelSettings(name=str(tmp_path / "packed"), dtype="fp32", device="cpu")
    found = planned(settings, as_stored(locate(settings, quiet)))
    assert found == sizes(load_model(settings, quiet))
    assert found
