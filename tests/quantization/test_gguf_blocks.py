"""The blocks of GGUF files: the same numbers as the package that writes them unpacks."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from luthier.quantization.gguf_blocks import GGUFWeight, gguf_weight

OWN = [Type.Q8_0, Type.Q4_0, Type.Q4_1]
BITS = {Type.Q8_0: 8.5, Type.Q4_0: 4.5, Type.Q4_1: 5.0}


def packed(format_: Type, outputs: int = 300, inputs: int = 96) -> GGUFWeight:
    """Random numbers in a format."""
    numbers = np.random.default_rng(0).standard_normal((outputs, inputs)).astype(np.float32)
    return gguf_weight("layer", (outputs, inputs), gguf.quantize(numbers, format_), format_)


@pytest.mark.parametrize("format_", OWN, ids=lambda format_: format_.name)
def test_our_unpacking_is_the_packages_bit_for_bit(format_: Type) -> None:
    weight = packed(format_)
    assert torch.equal(weight.dense(torch.float32), weight.reference())
    assert torch.equal(weight.dense(torch.bfloat16), weight.reference().to(torch.bfloat16))
    assert weight.kind == format_.name.lower()


@pytest.mark.parametrize("format_", OWN, ids=lambda format_: format_.name)
def test_a_number_takes_the_bits_of_its_format(format_: Type) -> None:
    weight = packed(format_)
    assert 8 * weight.num_bytes / (300 * 96) == BITS[format_]


@pytest.mark.parametrize("format_", [Type.Q4_K, Type.Q6_K], ids=lambda format_: format_.name)
def test_formats_that_only_the_package_knows_are_unpacked_by_it(format_: Type) -> None:
    block, size = gguf.GGML_QUANT_SIZES[format_]
    raw = np.random.default_rng(0).integers(0, 255, (4, size), dtype=np.uint8)
    raw[:, -2:] = raw[:, :4:2] = 0  # scales that are numbers
    weight = gguf_weight("layer", (4, block), raw, format_)
    expected = torch.from_numpy(gguf.dequantize(raw, format_)).float()
    assert torch.equal(torch.nan_to_num(weight.dense(torch.float32)), torch.nan_to_num(expected))
