"""The tensors that GPTQ's and AWQ's tools keep of a quantized layer, for weights of b bits, 32 / b codes an int32.

Both: `P.scales`, fp16 (G, O), and `P.qzeros`, int32 (G, O b / 32), the zero points along the outputs.
GPTQ: `P.qweight`, int32 (I b / 32, O), the codes along the inputs; `P.g_idx`, int32 (I,), the group of each input. In files of
its first version each zero point is one less than what is meant (subtracted from the int32 as a whole, and so added to it).
AWQ ("gemm"): `P.qweight`, int32 (I, O b / 32), the codes along the outputs. Eight of four bits lie in the order 0 2 4 6 1 3 5 7, in
zero points too.
Shapes: O outputs, I inputs, G groups.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from luthier.quantization.affine import AffineWeight
from luthier.quantization.faults import layer_fault

GPTQ_ENDINGS = ("qweight", "qzeros", "scales", "g_idx")
AWQ_ENDINGS = ("qweight", "qzeros", "scales")
_PLACE_OF_AWQ = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where each of eight neighbours lies."""


def read_gptq(name: str, tensors: Mapping[str, Tensor], bits: int, first_version: bool) -> AffineWeight:
    """A layer's weight. Raises DataError, naming the layer, if its tensors do not belong together."""
    qweight, qzeros, scale_GO = _required(name, tensors, AWQ_ENDINGS)
    codes_OI = _spread(qweight, bits).transpose(1, 2).flatten(0, 1).t()
    if first_version:
        qzeros = qzeros + sum(1 << shift for shift in range(0, 31, bits))  # beyond the last bit it begins again
    zero_GO = _spread(qzeros, bits).flatten(1)
    _check(name, codes_OI, scale_GO, zero_GO)
    group_I = tensors.get("g_idx")
    order_I: Tensor | None = None
    if group_I is not None:
        size = codes_OI.shape[1] // len(scale_GO)
        sorted_I = torch.argsort(group_I, stable=True)
        if not torch.equal(group_I[sorted_I].long(), torch.arange(len(group_I)) // size):
            raise layer_fault(name, "has groups of several sizes")
        if not torch.equal(sorted_I, torch.arange(len(sorted_I))):
            codes_OI, order_I = codes_OI[:, sorted_I], torch.argsort(sorted_I)
    return AffineWeight("gptq", bits, codes_OI.contiguous(), scale_GO.t().half(), zero_GO.t(), order_I)


def read_awq(name: str, tensors: Mapping[str, Tensor], bits: int) -> AffineWeight:
    """A layer's weight. Raises DataError, naming the layer, if its tensors do not belong together."""
    qweight, qzeros, scale_GO = _required(name, tensors, AWQ_ENDINGS)
    codes_IO, zero_GO = (_spread(each, bits)[..., _PLACE_OF_AWQ].flatten(1) for each in (qweight, qzeros))
    _check(name, codes_IO.t(), scale_GO, zero_GO)
    return AffineWeight("awq", bits, codes_IO.t().contiguous(), scale_GO.t().half(), zero_GO.t())


def _required(name: str, tensors: Mapping[str, Tensor], endings: tuple[str, ...]) -> list[Tensor]:
    lacking = [ending for ending in endings if ending not in tensors]
    if lacking:
        raise layer_fault(name, f"lacks {', '.join(lacking)}")
    return [tensors[ending] for ending in endings]


def _spread(packed: Tensor, bits: int) -> Tensor:
    """The codes of each int32, the lowest bits first, uint8, along a new last axis."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    codes: Tensor = (packed.to(torch.int32).unsqueeze(-1) >> shifts) & (2**bits - 1)
    return codes.to(torch.uint8)


def _check(name: str, codes_OI: Tensor, scale_GO: Tensor, zero_GO: Tensor) -> None:
    rows, columns = codes_OI.shape
    groups = len(scale_GO)
    if scale_GO.shape != (groups, rows) or zero_GO.shape != (groups, rows) or groups == 0 or columns % groups:
        shapes = f"{rows} × {columns} codes, scales {tuple(scale_GO.shape)} and zero points {tuple(zero_GO.shape)}"
        raise layer_fault(name, f"has {shapes}, which do not fit")
