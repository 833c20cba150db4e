"""The formats by the names that recipes call them."""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.errors import DataError
from luthier.quantization.four_bit import quantize_four_bit
from luthier.quantization.int8 import quantize_int8
from luthier.quantization.mxfp4 import quantize_mxfp4
from luthier.quantization.packed import PackedWeight
from luthier.quantization.settings import QuantizationSettings

COMPUTE = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def quantize(name: str, weight_OI: Tensor, settings: QuantizationSettings) -> PackedWeight:
    """A weight in the format of the settings. Raises DataError if it holds numbers that none can stand for."""
    if not torch.isfinite(weight_OI).all():
        raise DataError(
            f"The weight {name} holds numbers that are infinite or not numbers at all.",
            "Fetch the model again; if it came so, it is broken.",
        )
    compute = COMPUTE[settings.compute]
    if settings.kind == "int8":
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
