"""What a config says of a quantized model decides the size of its layers, and which they are, before any is read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from quantization.test_affine import GPTQ
from quantization.test_affine import golden as affine_golden
from quantization.test_hqq import NAMES
from quantization.test_hqq import golden as hqq_golden

from luthier.quantization.affine import blank_affine
from luthier.quantization.affine_files import read_awq, read_gptq
from luthier.quantization.hqq import blank_hqq, read_hqq
from luthier.quantization.stored import stored_form

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", [*GPTQ, "awq-4"])
def test_a_blank_weight_takes_what_the_one_that_is_read_does(name: str) -> None:
    tensors, _, bits = affine_golden(name)
    kind = "awq" if name == "awq-4" else "gptq"
    read = read_awq("layer", tensors, 4) if kind == "awq" else read_gptq("layer", tensors, bits, False)
    size = read.shape[1] // len(tensors["scales"])
    blank = blank_affine(kind, bits, size, "act-order" in name, read.shape, CPU)  # type: ignore[arg-type]
    assert blank.num_bytes == read.num_bytes


@pytest.mark.parametrize("name", NAMES)
def test_a_blank_weight_of_hqq_does_too(name: str) -> None:
    tensors, _ = hqq_golden(name)
    read = read_hqq("layer", tensors)
    bits, axis = int(tensors["nbits"]), int(tensors["axis"])
    count = read.shape[0] * read.shape[1]
    size = count // tensors["scale"].numel()
    assert blank_hqq(bits, size, axis, read.shape, CPU).num_bytes == read.num_bytes


@pytest.mark.parametrize(
    ("values", "bits"),
    [
        ({"quant_method": "gptq", "bits": 2, "group_size": 128}, 2 + 24 / 128),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 8 + 24 / 256),
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, 4 + 24 / 64),
        ({"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 1, "group_size": 32}}}, 2),
        ({"quant_method": "hqq", "quant_config": {"self_attn.q_proj": {"weight_quant_params": {"nbits": 8}}}}, 8.5),
        ({"load_in_8bit": True}, 8 + 32 / 256),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, 4.5),
    ],
)
def test_a_number_takes_the_bits_that_the_config_says(values: dict[str, Any], bits: float) -> None:
    blank = stored_form("model", values).blank((128, 256), CPU)
    assert blank.num_bytes * 8 == pytest.approx(bits * 128 * 256)


@pytest.mark.parametrize(
    ("values", "packed"),
    [
        ({"load_in_8bit": True, "llm_int8_skip_modules": ["up_proj"]}, ["model.layers.1.mlp.down_proj"]),
        ({"quant_method": "awq", "bits": 4, "modules_to_not_convert": ["model.layers.1.mlp.up_proj"]}, ["model.layers.1.mlp.down_proj"]),
        ({"quant_method": "hqq", "skip_modules": ["model.layers.1"]}, []),
        ({"quant_method": "gptq", "bits": 4, "modules_in_block_to_quantize": [["mlp.up_proj"]]}, ["model.layers.1.mlp.up_proj"]),
        ({"quant_method": "gptq", "bits": 4}, ["model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj"]),
    ],
)  # fmt: skip
def test_layers_that_the_config_leaves_out_stay_in_numbers(values: dict[str, Any], packed: list[str]) -> None:
    form = stored_form("model", values)
    names = ["model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj"]
    assert [name for name in names if form.packs(name)] == packed
