"""What GPTQ's and AWQ's tools pack, read: against their own packing, and against the formula."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from near import assert_near
from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier.errors import DataError, RecipeError
from luthier.models.anatomy import weight_of
from luthier.models.loading import load_model
from luthier.models.settings import ModelSettings
from luthier.quantization.affine import AffineWeight
from luthier.quantization.affine_files import read_awq, read_gptq
from luthier.quantization.packed import QuantizedLinear

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "affine"
GPTQ = ("gptq-2", "gptq-4", "gptq-8", "gptq-4-act-order")
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def golden(name: str) -> tuple[dict[str, Tensor], Tensor, int]:
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    return tensors, tensors.pop("weight_OI"), int(name.split("-")[1])


@pytest.mark.parametrize("name", GPTQ)
def test_what_gptqmodel_packs_is_read(name: str) -> None:
    tensors, weight_OI, bits = golden(name)
    read = read_gptq("layer", tensors, bits, first_version=False)
    assert_near(read.reference(), weight_OI, 1e-6)
    ones = sum(1 << shift for shift in range(0, 32, bits))
    first = tensors | {"qzeros": (tensors["qzeros"].long() - ones).to(torch.int32)}
    assert torch.equal(read_gptq("layer", first, bits, first_version=True).reference(), read.reference())


def test_what_autoawq_packs_is_read() -> None:
    tensors, weight_OI, bits = golden("awq-4")
    assert_near(read_awq("layer", tensors, bits).reference(), weight_OI, 1e-6)


@pytest.mark.parametrize("name", [*GPTQ, "awq-4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_is_unpacked_to_what_the_formula_gives_and_takes_its_bits(name: str, dtype: torch.dtype) -> None:
    tensors, _, bits = golden(name)
    read = read_awq("layer", tensors, 4) if name == "awq-4" else read_gptq("layer", tensors, bits, False)
    assert torch.equal(read.dense(dtype), read.reference().to(dtype))
    groups = len(tensors["scales"])
    order = 8 * 64 if "act-order" in name else 0
    assert read.num_bytes == 32 * 64 * bits // 8 + 3 * 32 * groups + order


def words(codes_RC: Tensor) -> Tensor:
    """Eight codes of four bits an int32, along the last axis."""
    parts = codes_RC.long().view(len(codes_RC), -1, 8)
    whole = sum(parts[..., place] << (4 * place) for place in range(8))
    return torch.as_tensor(whole).to(torch.int32)


def packed_folder(tiny_model: Path, folder: Path, kind: str, settings: dict[str, Any]) -> dict[str, Tensor]:
    """The tiny model with its layers as a tool of that kind keeps them, in groups of 16; the weights that are meant."""
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    meant: dict[str, Tensor] = {}
    kept: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(3)
    for name, tensor in load_file(tiny_model / "model.safetensors").items():
        layer = name.removesuffix(".weight")
        if not layer.endswith("_proj"):
            kept[name] = tensor
            continue
        rows, columns = tensor.shape
        codes_IO = torch.randint(0, 16, (columns, rows), generator=generator)
        zero_GO = torch.randint(1, 16, (columns // 16, rows), generator=generator)
        scale_GO = (torch.rand(columns // 16, rows, generator=generator) * 0.02).half()
        of_input = torch.arange(columns) // 16
        meant[layer] = ((codes_IO - zero_GO[of_input]) * scale_GO.float()[of_input]).t()
        order = list(_AWQ_ORDER)
        if kind == "awq":
            parts = {
                "qweight": words(codes_IO.view(columns, -1, 8)[..., order].flatten(1)),
                "qzeros": words(zero_GO.view(len(zero_GO), -1, 8)[..., order].flatten(1)),
            }
        else:
            parts = {
                "qweight": words(codes_IO.t()).t().contiguous(),
                "qzeros": words(zero_GO - 1),
                "g_idx": of_input.to(torch.int32),
            }
        kept |= {f"{layer}.{ending}": part for ending, part in parts.items()} | {f"{layer}.scales": scale_GO}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return meant


GPTQ_SETTINGS = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "sym": False}
AWQ_SETTINGS = {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm", "zero_point": True}


@pytest.mark.parametrize(("kind", "settings"), [("gptq", GPTQ_SETTINGS), ("awq", AWQ_SETTINGS)])
def test_a_whole_model_is_read_in_the_form_that_it_has(
    kind: str, settings: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    meant = packed_folder(tiny_model, tmp_path / "packed", kind, settings)
    model = load_model(ModelSettings(name=str(tmp_path / "packed"), device="cpu"), lambda text: None)
    packed = {name: layer for name, layer in model.hf.named_modules() if isinstance(layer, QuantizedLinear)}
    assert packed.keys() == meant.keys()
    for name, layer in packed.items():
        assert isinstance(layer.packed, AffineWeight)
        assert layer.packed.kind == kind
        assert_near(weight_of(layer), meant[name], 1e-6)


def test_tensors_that_do_not_belong_together_are_told_with_the_layer() -> None:
    tensors, _, bits = golden("gptq-4")
    lacking = {ending: tensor for ending, tensor in tensors.items() if ending != "scales"}
    with pytest.raises(DataError, match="layer m lacks scales"):
        read_gptq("m", lacking, bits, first_version=True)
    with pytest.raises(DataError, match="which do not fit"):
        read_gptq("m", tensors | {"scales": tensors["scales"][:3]}, bits, first_version=True)
    with pytest.raises(DataError, match="several sizes"):
        read_gptq("m", tensors | {"g_idx": torch.zeros_like(tensors["g_idx"])}, bits, first_version=True)


@pytest.mark.parametrize(
    "values",
    [
        {"quant_method": "gptq", "bits": 3},
        {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"},
        {"quant_method": "awq", "bits": 4, "version": "gemv"},
        {"quant_method": "quanto"},
    ],
    ids=str,
)
def test_forms_that_are_not_read_are_refused_with_what_can_be_done(
    values: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    packed_folder(tiny_model, tmp_path / "packed", "gptq", values)
    with pytest.raises(RecipeError, match=f"comes quantized by {values['quant_method']}") as refused:
        load_model(ModelSettings(name=str(tmp_path / "packed"), device="cpu"), lambda text: None)
    assert "nf4" in refused.value.mend
