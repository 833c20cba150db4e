"""Who has a CPU compute in a format that is slow there is told, with the setting that is faster."""

from __future__ import annotations

import pytest
import torch
from models.quantized import quantized_for
from models.tiny import tiny_model

from luthier.methods import LoRA
from luthier.models import half_precision
from luthier.models.half_precision import times_of_fp32, told_of_slow_products
from luthier.quantization.packed import QuantizedLinear


def times_are(monkeypatch: pytest.MonkeyPatch, times: float) -> None:
    monkeypatch.setattr(half_precision, "times_of_fp32", lambda dtype: times)


@pytest.mark.parametrize(
    ("dtype", "autocast", "mend"),
    [
        (torch.float32, None, None),
        (torch.float32, torch.bfloat16, "training.autocast to none"),
        (torch.bfloat16, None, "model.dtype to fp32"),
        (torch.bfloat16, torch.bfloat16, "model.dtype to fp32"),
    ],
)
def test_a_slow_format_is_told_with_the_setting_that_asks_for_it(
    dtype: torch.dtype, autocast: torch.dtype | None, mend: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama", dtype=dtype)
    times_are(monkeypatch, 4.84)
    told = told_of_slow_products(model, autocast)
    assert len(told) == (mend is not None)
    assert all("bf16 take 4.8 times" in sentence and str(mend) in sentence for sentence in told)
    times_are(monkeypatch, 1.2)
    assert told_of_slow_products(model, autocast) == []


def test_packed_weights_are_told_of_by_their_own_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    times_are(monkeypatch, 4.84)
    model = quantized_for(LoRA(rank=2), tiny_model("llama"))
    assert told_of_slow_products(model, None) == []
    for module in model.hf.modules():
        if isinstance(module, QuantizedLinear):
            module.packed.compute = torch.float16
    (told,) = told_of_slow_products(model, None)
    assert "fp16 take 4.8 times" in told
    assert "quantization.compute to fp32" in told


def test_what_is_measured_is_a_ratio_of_times() -> None:
    assert 0.2 < times_of_fp32(torch.float32) < 5
    assert times_of_fp32(torch.bfloat16) > 0
