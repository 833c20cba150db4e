"""The tensors that bitsandbytes keeps of a quantized layer, in its files and in ours.

Of a layer P in four bits: `P.weight`, uint8 (H, 1), or the same bytes seen as another format; `P.weight.absmax`, the scales,
fp32 (M,), or their codes, uint8 (M,), with `.nested_absmax` (K,) and `.nested_quant_map` (256,); `.quant_map` (16,); and
`.quant_state.bitsandbytes__nf4` (or `__fp4`), the bytes of a JSON document: quant_type, blocksize, dtype, shape, and of
nested scales nested_blocksize, nested_dtype and nested_offset, their mean.
In eight bits: `P.weight`, int8 (O, I); `P.SCB`, the rows' scales (O,); and `P.weight_format`, uint8, 0 for codes row by row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from luthier.errors import DataError
from luthier.quantization.codebooks import dynamic_map
from luthier.quantization.faults import layer_fault
from luthier.quantization.four_bit import (
    BLOCKS,
    SCALES_A_BLOCK,
    DoubleScales,
    FourBitKind,
    FourBitWeight,
    PlainScales,
    Scales,
    book_of,
)
from luthier.quantization.int8 import Int8Weight
from luthier.quantization.packed import PackedWeight

_STATE = "quant_state.bitsandbytes__"
_KINDS: tuple[FourBitKind, ...] = ("nf4", "fp4")

FOUR_BIT_ENDINGS = (
    "weight.absmax",
    "weight.quant_map",
    "weight.nested_absmax",
    "weight.nested_quant_map",
    *(f"weight.{_STATE}{kind}" for kind in _KINDS),
)
"""What may stand beside `weight` of a layer in four bits."""

INT8_ENDINGS = ("SCB", "weight_format")
"""What stands beside `weight` of a layer in eight bits."""


def file_tensors(packed: PackedWeight, dtype: torch.dtype) -> dict[str, Tensor]:
    """A weight as bitsandbytes keeps it, by ending. dtype: what it was quantized from, or is to be unpacked to.

    Raises DataError for a format that bitsandbytes does not have.
    """
    if isinstance(packed, FourBitWeight):
        return _four_bit_tensors(packed, dtype)
    if isinstance(packed, Int8Weight):
        return {
            "weight": packed.get_buffer("codes_OI"),
            "SCB": packed.get_buffer("size_O"),
            "weight_format": torch.tensor(0, dtype=torch.uint8),
        }
    raise DataError(f"bitsandbytes has no weights in {packed.kind}.", "Quantize to nf4, fp4 or int8.")


def model_settings(packed: PackedWeight, dtype: torch.dtype, whole: Sequence[str]) -> dict[str, Any]:
    """What the config of a model says of layers that are packed like this one. dtype: of products. whole: the layers that are not packed."""
    settings: dict[str, Any] = {"quant_method": "bitsandbytes", "llm_int8_skip_modules": list(whole)}
    if not isinstance(packed, FourBitWeight):
        return settings | {"load_in_8bit": True}
    return settings | {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": packed.kind,
        "bnb_4bit_use_double_quant": isinstance(packed.scales, DoubleScales),
        "bnb_4bit_compute_dtype": str(dtype).removeprefix("torch."),
    }


def _four_bit_tensors(packed: FourBitWeight, dtype: torch.dtype) -> dict[str, Tensor]:
    scales = packed.scales
    state: dict[str, Any] = {
        "quant_type": packed.kind,
        "blocksize": packed.block,
        "dtype": str(dtype).removeprefix("torch."),
        "shape": list(packed.shape),
    }
    tensors = {"weight": packed.get_buffer("bytes_H")[:, None], "weight.quant_map": packed.book.values_K.clone()}
    if isinstance(scales, DoubleScales):
        tensors["weight.absmax"] = scales.get_buffer("codes_M")
        tensors["weight.nested_absmax"] = scales.get_buffer("size_K")
        tensors["weight.nested_quant_map"] = dynamic_map().values_K.clone()
        state["nested_blocksize"] = SCALES_A_BLOCK
        state["nested_dtype"] = "float32"
        state["nested_offset"] = scales.get_buffer("mean").item()
    else:
        tensors["weight.absmax"] = scales.get_buffer("scale_M")
    text = json.dumps(state).encode()
    tensors[f"weight.{_STATE}{packed.kind}"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return tensors


def read_tensors(name: str, tensors: Mapping[str, Tensor], compute: torch.dtype | None = None) -> PackedWeight:
    """The weight that a layer's tensors, by ending, hold. Raises DataError, naming the layer, if they do not belong together."""
    states = [ending for ending in tensors if ending.startswith(f"weight.{_STATE}")]
    if len(states) == 1:
        return _read_four_bit(name, tensors, states[0], compute)
    if "SCB" in tensors and not states:
        return _read_int8(name, tensors, compute)
    raise layer_fault(name, f"has {len(states)} descriptions of its quantization, where one is expected")


def _read_int8(name: str, tensors: Mapping[str, Tensor], compute: torch.dtype | None) -> Int8Weight:
    codes_OI, size_O, layout = tensors["weight"], tensors["SCB"], tensors.get("weight_format")
    if layout is not None and int(layout) != 0:
        raise layer_fault(name, "has its codes in an order for one kind of GPU, not row by row")
    if codes_OI.dtype != torch.int8 or codes_OI.dim() != 2 or size_O.shape != codes_OI.shape[:1]:
        raise layer_fault(name, f"has codes {_shape(codes_OI)} and scales {_shape(size_O)}, which do not fit")
    return Int8Weight(codes_OI, size_O.float(), compute)


def _read_four_bit(
    name: str, tensors: Mapping[str, Tensor], state_name: str, compute: torch.dtype | None
) -> FourBitWeight:
    state = _state(name, tensors[state_name])
    kind, block, shape = state["quant_type"], state["blocksize"], state["shape"]
    if kind not in _KINDS or block not in BLOCKS or len(shape) != 2:
        raise layer_fault(name, f"is {kind!r} in blocks of {block}, of {len(shape)} axes, which Luthier does not read")
    kind = cast("FourBitKind", kind)
    if not torch.equal(tensors["weight.quant_map"].float().cpu(), book_of(kind).values_K):
        raise layer_fault(name, f"has a table of numbers that is not that of {kind}")
    bytes_H = tensors["weight"].reshape(-1).view(torch.uint8)
    rows, columns = int(shape[0]), int(shape[1])
    if len(bytes_H) != -(-rows * columns // 2):
        raise layer_fault(name, f"has {len(bytes_H)} bytes for {rows} × {columns} numbers")
    scales = _read_scales(name, tensors, state)
    count = -(-rows * columns // block)
    held = len(next(scales.buffers()))
    if held != count:
        raise layer_fault(name, f"has {held} scales for {count} blocks")
    return FourBitWeight(kind, (rows, columns), block, bytes_H, scales, compute)


def _read_scales(name: str, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Scales:
    absmax_M = tensors["weight.absmax"]
    if "nested_offset" not in state:
        return PlainScales(absmax_M.float())
    lacking = [key for key in ("weight.nested_absmax", "weight.nested_quant_map") if key not in tensors]
    if lacking:
        raise layer_fault(name, f"lacks {', '.join(lacking)}")
    if state.get("nested_blocksize") != SCALES_A_BLOCK or not torch.equal(
        tensors["weight.nested_quant_map"].float().cpu(), dynamic_map().values_K
    ):
        raise layer_fault(name, "has scales in a form that is not bitsandbytes' own")
    mean = torch.tensor(float(state["nested_offset"]), dtype=torch.float32, device=absmax_M.device)
    return DoubleScales(absmax_M, tensors["weight.nested_absmax"].float(), mean)


def _state(name: str, bytes_: Tensor) -> dict[str, Any]:
    try:
        state = json.loads(bytes(bytes_.cpu().tolist()))
        return {**state, "quant_type": state["quant_type"], "blocksize": state["blocksize"], "shape": state["shape"]}
    except (ValueError, KeyError, TypeError) as error:
        raise layer_fault(name, f"has a description that cannot be read ({error})") from error


def _shape(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
