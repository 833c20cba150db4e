"""Eight bits a number: rows, their scales, and what is lost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from luthier.errors import DataError
from luthier.quantization.formats import quantize
from luthier.quantization.int8 import quantize_int8
from luthier.quantization.settings import QuantizationSettings


def weight() -> Tensor:
    """Rows of very different sizes."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(24, 40, generator=generator) * torch.logspace(-3, 2, 24)[:, None]


def test_each_number_is_within_half_a_step_of_its_row() -> None:
    packed = quantize_int8(weight())
    step = weight().abs().amax(1, keepdim=True) / 127
    half_precision = weight().abs() * 2**-11
    assert bool(((packed.dense(torch.float32) - weight()).abs() <= step / 2 * 1.001 + half_precision).all())
    assert bool((packed.get_buffer("codes_OI").abs().amax(1) == 127).all()), "the greatest of a row has the last code"


def test_unpacking_is_the_formula_and_rounds_once() -> None:
    packed = quantize_int8(weight())
    assert torch.equal(packed.dense(torch.float32), packed.reference())
    assert torch.equal(packed.dense(torch.bfloat16), packed.reference().to(torch.bfloat16))


def test_a_row_of_zeros_stays_so_and_rows_do_not_see_each_other() -> None:
    changed = weight()
    changed[3] = 0
    changed[7] *= 50
    before, after = quantize_int8(weight()).reference(), quantize_int8(changed).reference()
    assert bool((after[3] == 0).all())
    others = [row for row in range(24) if row not in (3, 7)]
    assert torch.equal(after[others], before[others])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_number_that_fp16_cannot_hold_is_refused_with_the_layer_and_the_mend(dtype: torch.dtype) -> None:
    large = weight().to(dtype)
    large[3, 5] = -70000.0
    with pytest.raises(
        DataError, match=r"model\.layers\.1\.mlp\.up_proj holds numbers as large as [67]\d,\d{3}"
    ) as refused:
        quantize("model.layers.1.mlp.up_proj", large, QuantizationSettings(kind="int8"))
    assert "nf4" in refused.value.mend
    assert refused.value.field == "quantization.kind"
    assert bool(torch.isfinite(quantize("up_proj", large, QuantizationSettings(kind="nf4")).dense(torch.float32)).all())


@pytest.mark.parametrize("size", [65504.0, 65519.0])
def test_the_largest_numbers_that_fp16_holds_are_held(size: float) -> None:
    large = weight()
    large[3, 5] = size
    assert float(quantize("layer", large, QuantizationSettings(kind="int8")).dense(torch.float32)[3, 5]) == 65504.0


def test_a_number_takes_a_byte_and_its_share_of_a_scale() -> None:
    assert quantize_int8(weight()).num_bytes == 24 * 40 + 24 * 4
