"""The forms in which a model's files may have it quantized already, by what its config says of that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from luthier.errors import RecipeError
from luthier.quantization.affine_files import AWQ_ENDINGS, GPTQ_ENDINGS, read_awq, read_gptq
from luthier.quantization.bitsandbytes_files import FOUR_BIT_ENDINGS, INT8_ENDINGS, read_tensors
from luthier.quantization.hqq import HQQ_ENDINGS, read_hqq
from luthier.quantization.mxfp4_files import MXFP4_ENDINGS, read_mxfp4
from luthier.quantization.packed import PackedWeight
from luthier.quantization.settings import QuantizationSettings

Read = Callable[[str, Mapping[str, Tensor]], PackedWeight]
"""A layer's weight from its name and its tensors, by ending."""


@dataclass(frozen=True)
class StoredForm:
    """endings: what files may hold of a quantized layer, beside `weight`. like: a format of ours that takes about as much memory.

    are_stacked: whether the quantized layers are those of experts, all of a projection in one tensor for each ending.
    """

    endings: tuple[str, ...]
    read: Read
    like: QuantizationSettings
    are_stacked: bool = False


def stored_form(name: str, quantization: Any) -> StoredForm:
    """The form that the `quantization_config` of a model of that name describes. Raises RecipeError if it is not read."""
    values = quantization if isinstance(quantization, dict) else {}
    if values.get("load_in_4bit"):
        double = bool(values.get("bnb_4bit_use_double_quant"))
        like = QuantizationSettings(kind=values.get("bnb_4bit_quant_type", "fp4"), double=double)
        return StoredForm(FOUR_BIT_ENDINGS, read_tensors, like)
    if values.get("load_in_8bit"):
        return StoredForm(INT8_ENDINGS, read_tensors, QuantizationSettings(kind="int8"))
    if values.get("quant_method") == "mxfp4":
        like = QuantizationSettings(kind="mxfp4", targets=("gate_up_proj", "down_proj"))
        return StoredForm(MXFP4_ENDINGS, read_mxfp4, like, are_stacked=True)
    if values.get("quant_method") == "hqq":
        return StoredForm(HQQ_ENDINGS, read_hqq, QuantizationSettings(kind="nf4", double=False))
    bits = values.get("bits", values.get("w_bit"))
    like = QuantizationSettings(kind="int8") if bits == 8 else QuantizationSettings(kind="nf4", block=128, double=False)
    if values.get("quant_method") == "gptq" and bits in (2, 4, 8):
        version = values.get("checkpoint_format", "gptq")
        if version in ("gptq", "gptq_v2"):
            return StoredForm(GPTQ_ENDINGS, partial(read_gptq, bits=bits, first_version=version == "gptq"), like)
    if values.get("quant_method") == "awq" and bits == 4 and str(values.get("version", "gemm")).lower() == "gemm":
        return StoredForm(AWQ_ENDINGS, partial(read_awq, bits=bits), like)
    more = sorted({"bits", "w_bit", "checkpoint_format", "version"} & values.keys())
    details = "".join(f", {key} {values[key]}" for key in more)
    raise RecipeError(
        f"The model {name} comes quantized by {values.get('quant_method', quantization)}{details}, which Luthier does not read.",
        "Use the unquantized model and let Luthier quantize it (quantization: {kind: nf4}), or one by bitsandbytes, by HQQ, "
        "by GPTQ in 2, 4 or 8 bits, by AWQ (gemm), or in MXFP4.",
        field="model",
    )
