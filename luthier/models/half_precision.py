"""Whether a processor computes products in half precision as fast as in fp32: one without instructions for the format takes several times as long.

Measured rather than looked up: the instruction set alone does not say which products a library has been written for.
"""

from __future__ import annotations

import time

import torch

from luthier.models.language_model import LanguageModel
from luthier.models.loading import name_of_format
from luthier.quantization.packed import QuantizedLinear

_SLOW = 1.5
_ROWS, _WIDTH, _ROUNDS = 256, 1024, 3


def told_of_slow_products(model: LanguageModel, autocast: torch.dtype | None) -> list[str]:
    """For each setting that has a CPU compute in a format which is slow there, a sentence with the mend. autocast: as training computes."""
    if model.device.type != "cpu":
        return []
    found = [("quantization.compute to fp32", dtype) for dtype in _of_packed(model)]
    if model.dtype != torch.float32:
        found.append(("model.dtype to fp32, which takes more memory", model.dtype))
    elif autocast is not None:
        found.append(("training.autocast to none", autocast))
    times = {dtype: times_of_fp32(dtype) for dtype in {dtype for _, dtype in found}}
    return [
        f"Products in {name_of_format(dtype)} take {times[dtype]:.1f} times as long as in fp32 on this processor: it is faster to set {mend}."
        for mend, dtype in found
        if times[dtype] > _SLOW
    ]


def times_of_fp32(dtype: torch.dtype) -> float:
    """How many times as long as in fp32 a product takes on this processor in another number format: the best of a few."""
    return _seconds(dtype) / _seconds(torch.float32)


def _of_packed(model: LanguageModel) -> set[torch.dtype]:
    """The number formats, other than fp32, in which products with packed weights are computed."""
    packed = (module.packed.compute for module in model.hf.modules() if isinstance(module, QuantizedLinear))
    return {dtype for dtype in packed if dtype is not None and dtype != torch.float32}


def _seconds(dtype: torch.dtype) -> float:
    x_NI, weight_OI = torch.ones(_ROWS, _WIDTH, dtype=dtype), torch.ones(_WIDTH, _WIDTH, dtype=dtype)
    times = []
    for _ in range(1 + _ROUNDS):  # the first one finds the way
        begin = time.perf_counter()
        torch.nn.functional.linear(x_NI, weight_OI)
        times.append(time.perf_counter() - begin)
    return min(times[1:])
