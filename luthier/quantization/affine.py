"""Weights in few bits, each group of inputs of an output with a scale and a zero point: what GPTQ and AWQ leave.

    w = s (q − z)

for the codes q of a group. GPTQ: Frantar et al. 2022, https://arxiv.org/abs/2210.17323. AWQ: Lin et al. 2023,
https://arxiv.org/abs/2306.00978. How they choose q, s and z is theirs; such weights are read here and stay as they are.
Shapes: O outputs, I inputs, G groups of S inputs each.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from luthier.quantization.packed import PackedWeight

AffineKind = Literal["gptq", "awq"]
_NUMBERS_AT_ONCE = 2**20
"""Numbers that are unpacked at a time: what that takes beside the buffer stays small."""


class AffineWeight(PackedWeight):
    """Codes of 2, 4 or 8 bits, several a byte, the first in the lowest bits.

    order_I: where each input stands among the codes, which lie group by group; None: where it is.
    """

    def __init__(
        self,
        kind: AffineKind,
        bits: int,
        codes_OI: Tensor,
        scale_OG: Tensor,
        zero_OG: Tensor,
        order_I: Tensor | None = None,
        compute: torch.dtype | None = None,
    ) -> None:
        """codes_OI: uint8. scale_OG: fp16. zero_OG: uint8."""
        rows, columns = codes_OI.shape
        super().__init__((rows, columns), compute)
        self.kind = kind
        self.bits = bits
        self.register_buffer("bytes_OB", _packed(codes_OI, bits))
        self.register_buffer("scale_OG", scale_OG.contiguous())
        self.register_buffer("zero_OG", zero_OG.contiguous())
        self.register_buffer("order_I", order_I)

    def unpack_into(self, out_N: Tensor) -> None:
        """By the formula, some rows at a time: computed in fp32, rounded once."""
        out_OI, (rows, columns) = out_N.view(self.shape), self.shape
        step = max(_NUMBERS_AT_ONCE // columns, 1)
        for start in range(0, rows, step):
            some = slice(start, min(start + step, rows))
            out_OI[some].copy_(self._rows(some))

    def reference(self) -> Tensor:
        """All at once."""
        return self._rows(slice(0, self.shape[0]))

    def _rows(self, rows: slice) -> Tensor:
        scale_OG, zero_OG = self.get_buffer("scale_OG")[rows], self.get_buffer("zero_OG")[rows]
        codes_OI = _unpacked(self.get_buffer("bytes_OB")[rows], self.bits).float()
        values_OGS = codes_OI.view(*scale_OG.shape, -1).sub_(zero_OG[..., None]).mul_(scale_OG[..., None])
        order_I = dict(self.named_buffers()).get("order_I")
        return values_OGS.flatten(1) if order_I is None else values_OGS.flatten(1).index_select(1, order_I)


def blank_affine(
    kind: AffineKind, bits: int, group_size: int, is_ordered: bool, shape: tuple[int, int], device: torch.device
) -> AffineWeight:
    """A weight of that shape, of any numbers. group_size: −1 for one group a row. is_ordered: whether inputs lie in another order."""
    rows, columns = shape
    groups = 1 if group_size < 1 else -(-columns // group_size)

    def empty(count: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(rows, count, dtype=dtype, device=device)

    order_I = torch.arange(columns, device=device) if is_ordered else None
    codes_OI = empty(columns, torch.uint8)
    return AffineWeight(kind, bits, codes_OI, empty(groups, torch.float16), empty(groups, torch.uint8), order_I)


def _packed(codes_OI: Tensor, bits: int) -> Tensor:
    """8 / bits codes a byte, shape (O, I bits / 8)."""
    parts = codes_OI.view(len(codes_OI), -1, 8 // bits).unbind(-1)
    packed = parts[0].clone()
    for place, part in enumerate(parts[1:], start=1):
        packed |= part << (place * bits)
    return packed


def _unpacked(bytes_OB: Tensor, bits: int) -> Tensor:
    """The codes, uint8, shape (O, I)."""
    if bits == 8:
        return bytes_OB
    parts = [(bytes_OB >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    return torch.stack(parts, dim=-1).flatten(1)
