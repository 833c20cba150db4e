"""The same codes, scales and files as bitsandbytes', and where its processor path is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes import functional
from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier.errors import DataError
from luthier.quantization.bitsandbytes_files import file_tensors, read_tensors
from luthier.quantization.blocks import dequantize_blocks, quantize_blocks
from luthier.quantization.codebooks import Codebook, codebook, dynamic_map
from luthier.quantization.four_bit import DoubleScales, FourBitKind, FourBitWeight, double_scales, quantize_four_bit
from luthier.quantization.int8 import Int8Weight, quantize_int8

SHAPES = [(256, 512), (64, 128), (33, 50), (7, 13), (64, 96), (1, 1), (3, 5), (128, 1000), (5, 64), (17, 257)]
FAULTY = [(64, 96), (64, 80), (64, 48), (4, 32)]


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Weights as models have them."""
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.02).to(dtype)


def theirs(weight: Tensor, kind: str, block: int = 64, double: bool = False) -> tuple[Tensor, Any]:
    """What bitsandbytes makes of a weight: bytes and description."""
    return functional.quantize_4bit(weight, blocksize=block, quant_type=kind, compress_statistics=double)


@pytest.mark.parametrize("block", [32, 64, 256, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_and_scales_are_theirs_bit_for_bit(
    shape: tuple[int, int], kind: FourBitKind, dtype: torch.dtype, block: int
) -> None:
    weight = drawn(*shape, dtype=dtype)
    bytes_, state = theirs(weight, kind, block)
    ours = quantize_four_bit(weight, kind, block=block, double=False)
    assert torch.equal(ours.get_buffer("bytes_H"), bytes_.flatten())
    assert torch.equal(ours.scales(), state.absmax)


@pytest.mark.parametrize("signed", [True, False])
def test_the_dynamic_maps_are_theirs(signed: bool) -> None:
    assert torch.equal(dynamic_map(signed).values_K, functional.create_dynamic_map(signed=signed))


class BinnedCodebook(Codebook):
    """Their map as they look it up on a processor: by 65,536 bins of [−1, 1], and so off near the borders."""

    def nearest(self, x: Tensor) -> Tensor:
        """The code that the middle of a number's bin has."""
        bins = ((x.clamp(-1, 1) + 1) * 0.5 * 65535 + 0.5).to(torch.int32)
        return super().nearest(bins.float() / 65535 * 2 - 1)


def binned() -> Codebook:
    """The signed dynamic map, looked up in that way."""
    book = dynamic_map()
    return BinnedCodebook(book.name, book.values_K, book.codes_K, book.edges)


@pytest.mark.parametrize("shape", [(1024, 4096), (33, 50), (300, 700)], ids=str)
def test_scales_in_eight_bits_differ_from_theirs_only_by_their_bins(shape: tuple[int, int]) -> None:
    weight = drawn(*shape)
    _, state = theirs(weight, "nf4", double=True)
    exact = quantize_four_bit(weight, "nf4").scales
    plain = quantize_four_bit(weight, "nf4", double=False).scales()
    assert isinstance(exact, DoubleScales)
    assert torch.equal(exact.get_buffer("size_K"), state.state2.absmax)
    assert float(exact.get_buffer("mean")) == float(state.offset)
    assert torch.equal(double_scales(plain, binned()).get_buffer("codes_M"), state.absmax)
    differing = exact.get_buffer("codes_M") != state.absmax
    assert float(differing.float().mean()) < 0.004
    assert bool((exact().sub(plain).abs() <= double_scales(plain, binned())().sub(plain).abs() + 1e-9).all())


@pytest.mark.parametrize("shape", [(256, 512), (64, 128), (33, 50), (7, 13), (17, 257)], ids=str)
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_unpacked_numbers_are_theirs_where_theirs_are_right(shape: tuple[int, int], kind: FourBitKind) -> None:
    weight = drawn(*shape)
    unpacked = functional.dequantize_4bit(*theirs(weight, kind))
    assert torch.equal(quantize_four_bit(weight, kind, double=False).dense(torch.float32), unpacked)


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="their fault is in the code for AVX-512 processors"
)
@pytest.mark.parametrize("shape", FAULTY, ids=str)
def test_where_rows_are_no_whole_blocks_theirs_are_wrong_and_ours_are_not(shape: tuple[int, int]) -> None:
    weight = drawn(*shape)
    unpacked = functional.dequantize_4bit(*theirs(weight, "nf4"))
    ours = quantize_four_bit(weight, "nf4", double=False)
    assert torch.equal(ours.dense(torch.float32), ours.reference())
    errors = [float((found - weight).norm() / weight.norm()) for found in (unpacked, ours.reference())]
    assert errors[0] > 0.15, "bitsandbytes has mended this: say so in the docs, and take the test out"
    assert errors[1] < 0.1


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_what_we_write_they_load_and_what_they_write_we_load(tmp_path: Path, kind: FourBitKind, double: bool) -> None:
    weight = drawn(128, 256, dtype=torch.bfloat16)
    ours = quantize_four_bit(weight, kind, double=double)
    save_file(
        {f"layer.{ending}": tensor.contiguous() for ending, tensor in file_tensors(ours, torch.bfloat16).items()},
        tmp_path / "ours",
    )
    written = {
        name.removeprefix("layer.weight").removeprefix("."): tensor
        for name, tensor in load_file(tmp_path / "ours").items()
    }
    data = written.pop("")
    loaded = bnb.nn.Params4bit.from_prequantized(data, written, device="cpu")
    assert loaded.quant_state.dtype == torch.bfloat16
    assert torch.equal(functional.dequantize_4bit(loaded.data, loaded.quant_state), ours.reference().to(torch.bfloat16))

    layer = bnb.nn.Linear4bit(256, 128, bias=False, compress_statistics=double, quant_type=kind)
    layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, compress_statistics=double, quant_type=kind)
    layer = layer.to("cpu")
    save_file({name: tensor.contiguous() for name, tensor in layer.state_dict().items()}, tmp_path / "theirs")
    read = read_tensors("layer", load_file(tmp_path / "theirs"))
    assert isinstance(read, FourBitWeight)
    again = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert torch.equal(read.dense(torch.bfloat16), again)


def test_bytes_that_are_stored_as_another_format_are_seen_as_bytes_again() -> None:
    packed = quantize_four_bit(drawn(64, 128), "nf4")
    tensors = file_tensors(packed, torch.float32)
    tensors["weight"] = tensors["weight"].view(-1).view(torch.bfloat16)[:, None]
    read = read_tensors("layer", tensors)
    assert torch.equal(read.dense(torch.float32), packed.reference())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(24, 40), (1, 1), (1, 257), (257, 1), (7, 13), (33, 50), (300, 700)], ids=str)
def test_eight_bit_codes_and_scales_are_theirs_bit_for_bit(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = drawn(*shape, dtype=dtype)
    weight[0] = 0
    weight[-1] *= 1000
    layer = bnb.nn.Linear8bitLt(shape[1], shape[0], bias=False, has_fp16_weights=False)
    layer.weight = bnb.nn.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)
    layer = layer.to("cpu")  # which quantizes it, rounded to fp16
    ours = quantize_int8(weight)
    assert torch.equal(ours.get_buffer("codes_OI"), layer.weight.data)
    assert torch.equal(ours.get_buffer("size_O"), layer.weight.SCB.flatten().float())


def test_eight_bit_layers_are_theirs(tmp_path: Path) -> None:
    weight = drawn(24, 40, dtype=torch.float16)
    codes, scales, _ = functional.int8_vectorwise_quant(weight)
    ours = quantize_int8(weight)
    assert torch.equal(ours.get_buffer("codes_OI"), codes)
    assert torch.equal(ours.get_buffer("size_O"), scales.flatten())
    save_file({name: tensor.clone() for name, tensor in file_tensors(ours, torch.float16).items()}, tmp_path / "ours")
    read = read_tensors("layer", load_file(tmp_path / "ours"))
    assert isinstance(read, Int8Weight)
    assert torch.equal(read.reference(), ours.reference())


def good_tensors() -> dict[str, Tensor]:
    """Those of a layer with scales in eight bits."""
    return file_tensors(quantize_four_bit(drawn(16, 64), "nf4"), torch.float32)


def without(*endings: str) -> dict[str, Tensor]:
    """The same without some."""
    return {ending: tensor for ending, tensor in good_tensors().items() if ending not in endings}


def with_other(ending: str, tensor: Tensor) -> dict[str, Tensor]:
    """The same with another tensor in the place of one."""
    return good_tensors() | {ending: tensor}


STATE = "weight.quant_state.bitsandbytes__nf4"


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (without(STATE), "has 0 descriptions of its quantization"),
        (with_other("weight.quant_state.bitsandbytes__fp4", good_tensors()[STATE]), "has 2 descriptions"),
        (with_other(STATE, torch.tensor([123, 1], dtype=torch.uint8)), "a description that cannot be read"),
        (with_other("weight.quant_map", torch.linspace(-1, 1, 16)), "a table of numbers that is not that of nf4"),
        (with_other("weight", torch.zeros(8, 1, dtype=torch.uint8)), "has 8 bytes for 16 × 64 numbers"),
        (with_other("weight.absmax", torch.zeros(3, dtype=torch.uint8)), "has 3 scales for 16 blocks"),
        (without("weight.nested_absmax"), "lacks weight.nested_absmax"),
        (with_other("weight.nested_quant_map", torch.zeros(256)), "scales in a form that is not bitsandbytes' own"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tensors_that_do_not_belong_together_are_refused_with_the_layer(tensors: dict[str, Tensor], words: str) -> None:
    with pytest.raises(DataError, match=words) as refused:
        read_tensors("model.layers.3.mlp.up_proj", tensors)
    assert "model.layers.3.mlp.up_proj" in str(refused.value)
    assert refused.value.mend


def test_the_plain_reference_is_code_times_scale() -> None:
    book = codebook("three", (-1.0, 0.0, 2.0))
    codes, scales = quantize_blocks(torch.tensor([3.0, -1.5, 0.1, 0.2, -0.2]), book, 2)
    assert scales.tolist() == pytest.approx([3.0, 0.2, 0.2])
    expected = book.values_K[codes.long()] * torch.tensor([3.0, 3.0, 0.2, 0.2, 0.2])
    assert torch.equal(dequantize_blocks(codes, scales, book, 2), expected)
