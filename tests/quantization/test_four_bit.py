"""NF4 and FP4: what the codes keep of a weight, and what they take."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier.quantization.bitsandbytes_files import file_tensors
from luthier.quantization.codebooks import dynamic_map, nf4
from luthier.quantization.four_bit import DoubleScales, FourBitKind, book_of, quantize_four_bit
from luthier.quantization.lookup import Order, pack, unpack

SHAPES = [(256, 512), (64, 128), (33, 50), (7, 13), (64, 96), (1, 1), (3, 5), (128, 4096)]


def normal(*shape: int, seed: int = 0, std: float = 1.0) -> Tensor:
    """Normally distributed numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * std


@pytest.mark.parametrize("order", ["high-first", "low-first"])
@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_packing_keeps_every_code(order: Order, count: int) -> None:
    codes = torch.arange(count, dtype=torch.uint8) % 16
    packed = pack(codes, order)
    assert len(packed) == math.ceil(count / 2)
    assert torch.equal(unpack(packed, count, order), codes)
    assert int(packed[0]) >> 4 == int(codes[0] if order == "high-first" else codes[1:2].sum())


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("block", [32, 64, 256, 4096])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_unpacking_is_the_formula_bit_for_bit(
    shape: tuple[int, int], kind: FourBitKind, block: int, double: bool
) -> None:
    packed = quantize_four_bit(normal(*shape), kind, block=block, double=double)
    by_formula = packed.reference()
    assert by_formula.shape == shape
    assert torch.equal(packed.dense(torch.float32), by_formula)
    assert torch.equal(packed.lent(torch.float32), by_formula)
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(packed.dense(dtype), by_formula.to(dtype)), "rounded once, at the end"


@pytest.mark.parametrize(
    ("kind", "block", "error"),
    [
        ("nf4", 32, 0.0873),
        ("nf4", 64, 0.0920),
        ("nf4", 128, 0.0956),
        ("nf4", 256, 0.0987),
        ("nf4", 4096, 0.1095),
        ("fp4", 32, 0.1142),
        ("fp4", 64, 0.1220),
        ("fp4", 128, 0.1286),
        ("fp4", 256, 0.1347),
        ("fp4", 4096, 0.1575),
    ],
)
def test_the_relative_error_on_normal_numbers_is_the_published_one(kind: FourBitKind, block: int, error: float) -> None:
    weight = normal(1024, 4096)
    found = [
        float((quantize_four_bit(weight, kind, block=block, double=double).dense(torch.float32) - weight).norm())
        / float(weight.norm())
        for double in (False, True)
    ]
    assert found[0] == pytest.approx(error, abs=1.5e-4 if block < 4096 else 7e-4)
    assert abs(found[1] - found[0]) < 3e-5, "scales in eight bits add nearly nothing"


def test_a_number_takes_the_bits_that_the_formula_says_in_memory_and_in_a_file(tmp_path: Path) -> None:
    weight = normal(4096, 4096)
    for double, bits, known in ((False, 4 + 32 / 64, 4.5), (True, 4 + 8 / 64 + 32 / (64 * 256), 4.1275)):
        packed = quantize_four_bit(weight, "nf4", double=double)
        assert 8 * packed.num_bytes / weight.numel() == pytest.approx(bits, abs=0 if not double else 1e-5)
        file = tmp_path / f"double-{double}"
        save_file(file_tensors(packed, torch.float32), file)
        held = load_file(file)
        tables = sum(held[name].nbytes for name in held if name.endswith(("quant_map", "bitsandbytes__nf4")))
        in_file = 8 * sum(tensor.nbytes for tensor in held.values()) / weight.numel()
        assert tables < 1500, "what a layer has once"
        assert in_file == pytest.approx(bits + 8 * tables / weight.numel(), abs=1e-5)
        assert in_file == pytest.approx(known, abs=2e-4)
        assert 8 * file.stat().st_size / weight.numel() == pytest.approx(in_file, abs=1e-3), "the header is small"


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_no_number_is_further_off_than_half_the_widest_gap_of_its_block(kind: FourBitKind) -> None:
    weight = normal(64, 256)
    in_order = book_of(kind).values_K.sort().values
    widest = float((in_order[1:] - in_order[:-1]).max()) / 2
    off = (quantize_four_bit(weight, kind, double=False).dense(torch.float32) - weight).view(-1, 64).abs()
    assert bool((off <= weight.view(-1, 64).abs().amax(1, keepdim=True) * (widest + 1e-6)).all())


def test_zeros_stay_zeros_and_a_block_of_zeros_has_no_scale() -> None:
    weight = normal(4, 64)
    weight[1] = 0
    weight[2, ::2] = 0
    packed = quantize_four_bit(weight, "nf4", double=False)
    assert torch.equal(packed.dense(torch.float32) == 0, (weight == 0) | (packed.dense(torch.float32) == 0))
    assert bool((packed.dense(torch.float32)[weight == 0] == 0).all())
    assert packed.scales()[1] == 0
    assert bool((unpack(packed.get_buffer("bytes_H"), 256, "high-first")[64:128] == 7).all())


def test_a_power_of_two_goes_through_and_a_sign_does_not() -> None:
    weight = normal(16, 64)
    once = quantize_four_bit(weight, "nf4", double=False).dense(torch.float32)
    assert torch.equal(quantize_four_bit(4 * weight, "nf4", double=False).dense(torch.float32), 4 * once)
    assert not torch.equal(quantize_four_bit(-weight, "nf4", double=False).dense(torch.float32), -once)


def test_blocks_do_not_see_each_other() -> None:
    weight = normal(8, 64)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    whole = quantize_four_bit(weight, "nf4", double=False).dense(torch.float32)
    assert torch.equal(quantize_four_bit(weight[order], "nf4", double=False).dense(torch.float32), whole[order])
    changed = weight.clone()
    changed[5] *= 100
    after = quantize_four_bit(changed, "nf4", double=False).dense(torch.float32)
    assert torch.equal(after[[0, 1, 2, 3, 4, 6, 7]], whole[[0, 1, 2, 3, 4, 6, 7]])


def test_to_quantize_what_was_quantized_changes_nothing() -> None:
    once = quantize_four_bit(normal(33, 50), "nf4", double=False)
    twice = quantize_four_bit(once.dense(torch.float32), "nf4", double=False)
    assert torch.equal(twice.get_buffer("bytes_H"), once.get_buffer("bytes_H"))
    assert torch.equal(twice.scales(), once.scales())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_weight_is_quantized_from_its_exact_numbers(dtype: torch.dtype) -> None:
    weight = normal(16, 128).to(dtype)
    ours, exact = (quantize_four_bit(each, "nf4") for each in (weight, weight.float()))
    assert torch.equal(ours.get_buffer("bytes_H"), exact.get_buffer("bytes_H"))
    assert torch.equal(ours.scales(), exact.scales())


def test_scales_in_eight_bits_are_within_half_a_step_of_the_map() -> None:
    weight = normal(512, 512) * (1 + 3 * torch.rand(512, 1, generator=torch.Generator().manual_seed(5)))
    exact = quantize_four_bit(weight, "nf4", double=False).scales()
    packed = quantize_four_bit(weight, "nf4")
    assert isinstance(packed.scales, DoubleScales)
    values = dynamic_map().values_K
    half_steps = (values[1:] - values[:-1]) / 2
    bound = (packed.scales.get_buffer("size_K").repeat_interleave(256)) * float(half_steps.max())
    assert bool(((packed.scales() - exact).abs() <= bound + 1e-6).all())


def test_a_weight_larger_than_what_is_scaled_at_a_time_is_the_same_as_in_one_piece() -> None:
    weight = normal(1025, 1031)
    packed = quantize_four_bit(weight, "nf4", double=False)
    flat, whole = weight.flatten(), weight.numel() // 64 * 64
    blocks = flat[:whole].view(-1, 64)
    codes = nf4().nearest((blocks * (1 / blocks.abs().amax(1))[:, None]).flatten())
    assert torch.equal(unpack(packed.get_buffer("bytes_H"), whole, "high-first"), codes)


def test_what_is_lent_is_overwritten_by_the_next_and_what_is_dense_is_not() -> None:
    first, second = (quantize_four_bit(normal(8, 64, seed=seed), "nf4") for seed in (1, 2))
    kept, lent = first.dense(torch.float32), first.lent(torch.float32)
    second.lent(torch.float32)
    assert torch.equal(lent, second.reference())
    assert torch.equal(kept, first.reference())
