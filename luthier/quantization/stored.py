"""The forms in which a model's files may have it quantized already, by what its config says of that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from luthier.errors import RecipeError
from luthier.quantization.affine import blank_affine
from luthier.quantization.affine_files import AWQ_ENDINGS, GPTQ_ENDINGS, read_awq, read_gptq
from luthier.quantization.bitsandbytes_files import FOUR_BIT_ENDINGS, INT8_ENDINGS, read_tensors
from luthier.quantization.formats import blank
from luthier.quantization.hqq import HQQ_ENDINGS, blank_hqq, read_hqq
from luthier.quantization.mxfp4_files import MXFP4_ENDINGS, read_mxfp4
from luthier.quantization.packed import PackedWeight
from luthier.quantization.settings import QuantizationSettings

Read = Callable[[str, Mapping[str, Tensor]], PackedWeight]
"""A layer's weight from its name and its tensors, by ending."""


Blank = Callable[[tuple[int, int], torch.device], PackedWeight]
"""A weight (O, I) of the form, of any numbers."""


@dataclass(frozen=True)
class StoredForm:
    """endings: what files may hold of a quantized layer, beside `weight`. blank: for what its size alone decides.

    are_stacked: whether the quantized layers are those of experts, all of a projection in one tensor for each ending.
    kept: parts of names whose layers are in numbers. only: how the names of quantized layers end; empty: as they like.
    """

    endings: tuple[str, ...]
    read: Read
    blank: Blank
    are_stacked: bool = False
    kept: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    def packs(self, name: str) -> bool:
        """Whether a linear layer of that name comes quantized, as far as the config says."""
        if any(f".{part}." in f".{name}." for part in self.kept):
            return False
        return not self.only or any(f".{name}".endswith(f".{ending}") for ending in self.only)


def stored_form(name: str, quantization: Any) -> StoredForm:
    """The form that the `quantization_config` of a model of that name describes. Raises RecipeError if it is not read."""
    values = quantization if isinstance(quantization, dict) else {}
    form = _form(values)
    if form is not None:
        return replace(form, kept=_kept(values), only=form.only or _only(values))
    more = sorted({"bits", "w_bit", "checkpoint_format", "version"} & values.keys())
    details = "".join(f", {key} {values[key]}" for key in more)
    raise RecipeError(
        f"The model {name} comes quantized by {values.get('quant_method', quantization)}{details}, which Luthier does not read.",
        "Use the unquantized model and let Luthier quantize it (quantization: {kind: nf4}), or one by bitsandbytes, by HQQ, "
        "by GPTQ in 2, 4 or 8 bits, by AWQ (gemm), or in MXFP4.",
        field="model",
    )


def _form(values: Mapping[str, Any]) -> StoredForm | None:
    """None for one that is not read."""
    if values.get("load_in_4bit"):
        double = bool(values.get("bnb_4bit_use_double_quant"))
        like = QuantizationSettings(kind=values.get("bnb_4bit_quant_type", "fp4"), double=double)
        return StoredForm(FOUR_BIT_ENDINGS, read_tensors, _as(like))
    if values.get("load_in_8bit"):
        return StoredForm(INT8_ENDINGS, read_tensors, _as(QuantizationSettings(kind="int8")))
    if values.get("quant_method") == "mxfp4":
        like = QuantizationSettings(kind="mxfp4")
        only = ("gate_up_proj", "down_proj")
        return StoredForm(MXFP4_ENDINGS, read_mxfp4, _as(like), are_stacked=True, only=only)
    if values.get("quant_method") == "hqq":
        return StoredForm(HQQ_ENDINGS, read_hqq, _hqq_blank(values.get("quant_config")))
    bits, group = values.get("bits", values.get("w_bit")), values.get("group_size", values.get("q_group_size", 128))
    if values.get("quant_method") == "gptq" and bits in (2, 4, 8):
        version = values.get("checkpoint_format", "gptq")
        if version in ("gptq", "gptq_v2"):
            read = partial(read_gptq, bits=bits, first_version=version == "gptq")
            is_ordered = bool(values.get("desc_act")) and not values.get("static_groups")
            return StoredForm(GPTQ_ENDINGS, read, partial(blank_affine, "gptq", bits, group, is_ordered))
    if values.get("quant_method") == "awq" and bits == 4 and str(values.get("version", "gemm")).lower() == "gemm":
        return StoredForm(AWQ_ENDINGS, partial(read_awq, bits=bits), partial(blank_affine, "awq", bits, group, False))
    return None


def _as(settings: QuantizationSettings) -> Blank:
    return lambda shape, device: blank(shape, settings, device)


def _hqq_blank(settings: Any) -> Blank:
    """By the bits and groups that are said of all layers; where layers differ, of those that come first."""
    of_all = settings if isinstance(settings, Mapping) else {}
    if "weight_quant_params" not in of_all:
        of_all = next((each for each in of_all.values() if isinstance(each, Mapping)), {})
    values = of_all.get("weight_quant_params") or {}
    bits, group, axis = (values.get(key) or usual for key, usual in (("nbits", 4), ("group_size", 64), ("axis", 1)))
    if values.get("axis") == 0:
        axis = 0
    return partial(blank_hqq, int(bits), int(group), int(axis))


def _kept(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Parts of names that a config says are not quantized, under any of the names that tools have for that."""
    named = (values.get(key) for key in ("modules_to_not_convert", "llm_int8_skip_modules", "skip_modules"))
    return tuple(str(part) for names in named if isinstance(names, list) for part in names)


def _only(values: Mapping[str, Any]) -> tuple[str, ...]:
    """What alone GPTQ was to quantize in each block, where its config says so."""
    groups = values.get("modules_in_block_to_quantize")
    if not isinstance(groups, list):
        return ()
    return tuple(str(name) for group in groups for name in (group if isinstance(group, list) else [group]))
