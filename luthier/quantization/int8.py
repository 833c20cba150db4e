"""Eight bits a number and a scale a row.

Dettmers et al. 2022, https://arxiv.org/abs/2208.07339, section 2: with s the greatest size in a row,

    q = round(w · 127 / s),   w' = q · s / 127.

Only the weights are held so; what they are multiplied with stays as it is. The file form is that of the paper's library, and as
there, weights are rounded to fp16 first. A number takes 8 + 32 / I bits.
Shapes: O outputs, I inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.quantization.packed import PackedWeight

_LEVELS = 127
BOUND = 65520.0
"""The least size that fp16 rounds to infinity; those from 65,504 to here it rounds to 65,504."""


class Int8Weight(PackedWeight):
    """A weight in eight bits: codes (O, I), int8, and the greatest size in each row (O,), fp32."""

    kind = "int8"

    def __init__(self, codes_OI: Tensor, size_O: Tensor, compute: torch.dtype | None = None) -> None:
        super().__init__((codes_OI.shape[0], codes_OI.shape[1]), compute)
        self.register_buffer("codes_OI", codes_OI)
        self.register_buffer("size_O", size_O)

    def unpack_into(self, out_N: Tensor) -> None:
        """q · s / 127."""
        scale_O1 = (self.get_buffer("size_O") / _LEVELS)[:, None]
        out_OI = out_N.view(self.shape)
        if out_N.dtype == torch.float32:
            out_OI.copy_(self.get_buffer("codes_OI")).mul_(scale_O1)
        else:
            out_OI.copy_(self.get_buffer("codes_OI").float().mul_(scale_O1))

    def reference(self) -> Tensor:
        """q · s / 127, by the formula."""
        return self.get_buffer("codes_OI").float() * (self.get_buffer("size_O") / _LEVELS)[:, None]


def greatest_size(weight_OI: Tensor) -> float:
    """max |w|."""
    least, most = torch.aminmax(weight_OI)
    return max(-float(least), float(most))


@torch.no_grad()
def quantize_int8(weight_OI: Tensor, compute: torch.dtype | None = None) -> Int8Weight:
    """A weight of any float format in eight bits; its numbers must be smaller than `BOUND`."""
    half_OI = weight_OI.to(torch.float16).float()
    size_O = half_OI.abs().amax(1)
    codes_OI = torch.round(half_OI * (_LEVELS / size_O.clamp(min=torch.finfo(torch.float32).tiny))[:, None])
    return Int8Weight(codes_OI.to(torch.int8), size_O, compute)
