"""The formats by the names that recipes call them."""

from __future__ import annotations

import torch
from gguf import GGMLQuantizationType as Type
from torch import Tensor

from luthier.errors import DataError
from luthier.quantization.four_bit import (
    SCALES_A_BLOCK,
    DoubleScales,
    FourBitWeight,
    PlainScales,
    Scales,
    quantize_four_bit,
)
from luthier.quantization.gguf_blocks import BLOCK as GGUF_BLOCK
from luthier.quantization.gguf_blocks import GGUFWeight
from luthier.quantization.int8 import BOUND as INT8_BOUND
from luthier.quantization.int8 import Int8Weight, greatest_size, quantize_int8
from luthier.quantization.mxfp4 import BLOCK as MX_BLOCK
from luthier.quantization.mxfp4 import MXFP4Weight, quantize_mxfp4
from luthier.quantization.packed import PackedWeight
from luthier.quantization.settings import QuantizationSettings

COMPUTE = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def quantize(name: str, weight_OI: Tensor, settings: QuantizationSettings) -> PackedWeight:
    """A weight in the format of the settings. Raises DataError if it holds numbers that these cannot stand for."""
    if not torch.isfinite(weight_OI).all():
        raise DataError(
            f"The weight {name} holds numbers that are infinite or not numbers at all.",
            "Fetch the model again; if it came so, it is broken.",
        )
    compute = COMPUTE[settings.compute]
    assert settings.kind != "gguf", "such weights come packed"
    if settings.kind == "int8":
        if (greatest := greatest_size(weight_OI)) >= INT8_BOUND:
            raise DataError(
                f"The weight {name} holds numbers as large as {greatest:,.0f}; in eight bits none may be beyond 65,504.",
                f"Set quantization.kind to nf4, or name {name} in quantization.skip.",
                field="quantization.kind",
            )
        return quantize_int8(weight_OI, compute)
    if settings.kind == "mxfp4":
        return quantize_mxfp4(weight_OI, compute)
    return quantize_four_bit(
        weight_OI,
        settings.kind,
        block=settings.block or 64,
        double=settings.double is not False,
        compute=compute,
    )


def blank(shape: tuple[int, int], settings: QuantizationSettings, device: torch.device) -> PackedWeight:
    """A weight of that shape in the format of the settings, of any numbers: for what its size alone decides."""
    rows, columns = shape
    count, compute = rows * columns, COMPUTE[settings.compute]

    def empty(size: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(size, dtype=dtype, device=device)

    if settings.kind == "gguf":  # as if all were Q8_0, the widest of the usual forms
        size = columns // GGUF_BLOCK * (GGUF_BLOCK + 2)
        return GGUFWeight(shape, empty(rows * size, torch.uint8).view(rows, size), Type.Q8_0, compute)
    if settings.kind == "int8":
        return Int8Weight(empty(count, torch.int8).view(shape), empty(rows, torch.float32), compute)
    if settings.kind == "mxfp4":
        return MXFP4Weight(shape, empty(count // 2, torch.uint8), empty(count // MX_BLOCK, torch.uint8), compute)
    block = settings.block or 64
    num_blocks = -(-count // block)
    scales: Scales = PlainScales(empty(num_blocks, torch.float32))
    if settings.double is not False:
        scales = DoubleScales(
            empty(num_blocks, torch.uint8),
            empty(-(-num_blocks // SCALES_A_BLOCK), torch.float32),
            empty(1, torch.float32)[0],
        )
    return FourBitWeight(settings.kind, shape, block, empty(-(-count // 2), torch.uint8), scales, compute)
