"""What HQQ packs, read: against its own quantizer, and in a whole model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from models.tuned import quiet
from near import assert_near
from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier.errors import DataError
from luthier.models.anatomy import weight_of
from luthier.models.loading import load_model
from luthier.models.settings import ModelSettings
from luthier.quantization.hqq import HQQWeight, read_hqq
from luthier.quantization.packed import QuantizedLinear

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "hqq"
NAMES = [f"hqq-{bits}-axis-{axis}" for bits in (1, 2, 3, 4, 8) for axis in (0, 1)]


def golden(name: str) -> tuple[dict[str, Tensor], Tensor]:
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    return tensors, tensors.pop("weight_OI")


@pytest.mark.parametrize("name", NAMES)
def test_what_hqq_packs_is_unpacked_as_it_does_bit_for_bit(name: str) -> None:
    tensors, weight_OI = golden(name)
    read = read_hqq("layer", tensors)
    assert torch.equal(read.reference(), weight_OI)
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(read.dense(dtype), weight_OI.to(dtype))


def test_a_weight_of_more_numbers_than_are_unpacked_at_a_time_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.quantization.hqq._NUMBERS_AT_ONCE", 40)
    for name in NAMES:
        tensors, weight_OI = golden(name)
        assert torch.equal(read_hqq("layer", tensors).dense(torch.float32), weight_OI)


def test_four_bits_in_groups_of_64_take_four_and_a_half() -> None:
    rows, columns = 128, 256
    groups = torch.ones(rows * columns // 64, 1, dtype=torch.float16)
    codes = torch.zeros(rows * columns // 128, 64, dtype=torch.uint8)
    assert HQQWeight((rows, columns), 4, codes, groups, groups.clone()).num_bytes * 8 == 4.5 * rows * columns


def packed_folder(tiny_model: Path, folder: Path) -> set[str]:
    """The tiny model with random layers as HQQ writes them; their names."""
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    settings = {"weight_quant_params": {"nbits": 4, "group_size": 16, "axis": 1}}
    config["quantization_config"] = {"quant_method": "hqq", "quant_config": settings}
    (folder / "config.json").write_text(json.dumps(config))
    draw, kept, names = torch.Generator().manual_seed(3), {}, set()
    for name, tensor in load_file(tiny_model / "model.safetensors").items():
        layer = name.removesuffix(".weight")
        if not layer.endswith("_proj"):
            kept[name] = tensor
            continue
        names.add(layer)
        groups = tensor.numel() // 16
        parts = {
            "W_q": torch.randint(0, 256, (groups // 2, 16), generator=draw, dtype=torch.uint8),
            "scale": (torch.rand(groups, 1, generator=draw) * 0.02).half(),
            "zero": (torch.rand(groups, 1, generator=draw) * 15).half(),
            "shape": torch.tensor(tensor.shape),
            "stores_quant_config": torch.tensor(1, dtype=torch.uint8),
        }
        parts |= {key: torch.tensor(value) for key, value in {"nbits": 4, "axis": 1, "group_size": 16}.items()}
        kept |= {f"{layer}.{ending}": part for ending, part in parts.items()}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return names


def test_a_whole_model_is_read_in_the_form_that_it_has(tiny_model: Path, tmp_path: Path) -> None:
    names = packed_folder(tiny_model, tmp_path / "packed")
    model = load_model(ModelSettings(name=str(tmp_path / "packed"), device="cpu", dtype="fp32"), quiet)
    packed = {name: layer for name, layer in model.hf.named_modules() if isinstance(layer, QuantizedLinear)}
    assert packed.keys() == names
    tensors = load_file(tmp_path / "packed" / "model.safetensors")
    for name, layer in packed.items():
        of_layer = {key.rpartition(".")[2]: tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}
        codes = torch.cat([of_layer["W_q"] >> 4, of_layer["W_q"] & 15])
        meant = (codes - of_layer["zero"].float()) * of_layer["scale"].float()
        assert_near(weight_of(layer), meant.view(layer.packed.shape), 1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scale": None}, "layer m lacks scale"),
        ({"scale": torch.ones(3, 1)}, "do not fit"),
        ({"shape": torch.tensor([32, 640])}, "do not fit"),
        ({"nbits": torch.tensor(5)}, "not read"),
        ({"view_as_float": torch.tensor(1)}, "not read"),
    ],
)
def test_tensors_that_do_not_belong_together_are_told_with_the_layer(
    change: dict[str, Tensor | None], words: str
) -> None:
    tensors, _ = golden("hqq-4-axis-1")
    with pytest.raises(DataError, match=words):
        read_hqq("m", {key: tensor for key, tensor in {**tensors, **change}.items() if tensor is not None})
