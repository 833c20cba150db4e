"""MXFP4: four-bit floats under a shared power of two."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from luthier.errors import RecipeError
from luthier.quantization.codebooks import e2m1
from luthier.quantization.mxfp4 import nearest_even, quantize_mxfp4


def weight() -> Tensor:
    """Blocks of very different sizes, one of them zeros."""
    blocks = torch.randn(12, 2, 32, generator=torch.Generator().manual_seed(0))
    blocks *= torch.logspace(-6, 6, 24).view(12, 2, 1)
    blocks[4, 1] = 0
    return blocks.flatten(1)


def test_the_greatest_number_of_a_block_lies_between_four_and_eight_of_its_steps() -> None:
    packed = quantize_mxfp4(weight())
    largest = weight().view(-1, 32).abs().amax(1)
    ratio = (largest / packed.scale_M)[largest > 0]
    assert bool(((ratio >= 4) & (ratio < 8)).all())
    assert bool((packed.scale_M.log2() == packed.scale_M.log2().round()).all()), "every scale is a power of two"


def test_each_number_is_the_nearest_float_or_the_greatest() -> None:
    packed = quantize_mxfp4(weight())
    scaled = weight().view(-1, 32) / packed.scale_M[:, None]
    chosen = packed.reference().view(-1, 32) / packed.scale_M[:, None]
    best = (scaled[..., None].double() - e2m1().values_K.double()).abs().amin(-1)
    assert torch.allclose((scaled - chosen).abs().double(), best, atol=1e-6)


def test_of_two_as_near_the_even_code_is_taken() -> None:
    between = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 7.0, 100.0])
    even = torch.tensor([0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0, 6.0])
    values = e2m1().values_K
    assert torch.equal(values[nearest_even(between).long()], even)
    assert torch.equal(values[nearest_even(-between).long()], -even)


def test_unpacking_is_the_formula_and_a_number_takes_four_bits_and_a_quarter() -> None:
    packed = quantize_mxfp4(weight())
    assert torch.equal(packed.dense(torch.float32), packed.reference())
    assert bool((packed.reference().view(12, 2, 32)[4, 1] == 0).all())
    assert 8 * packed.num_bytes / weight().numel() == 4.25


def test_what_was_quantized_stays_as_it_is() -> None:
    once = quantize_mxfp4(weight())
    twice = quantize_mxfp4(once.reference())
    assert torch.equal(twice.reference(), once.reference())


def test_inputs_that_do_not_divide_into_blocks_are_refused() -> None:
    with pytest.raises(RecipeError, match="a multiple of 32 inputs; this layer has 48") as refused:
        quantize_mxfp4(torch.ones(2, 48))
    assert refused.value.field == "quantization.kind"
