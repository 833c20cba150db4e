"""MXFP4: four-bit floats that share a power of two in blocks of 32.

Open Compute Project, Microscaling formats 1.0, and Rouhani et al. 2023, https://arxiv.org/abs/2310.10537, algorithm 1:

    w = c · 2^(e − 127),   e = ⌊log₂ max|w|⌋ − 2 + 127,

c of E2M1, whose greatest is 6 = 1.5 · 2²; the shared exponent e takes a byte. What exceeds 6 is 6. The exponent is rounded
down, as the standard has it: other makers round it up or to the nearest, which reads the same. Blocks lie along the inputs, and a byte
holds its first number in the low half. A number takes 4.25 bits.
Shapes: O outputs, I inputs (a multiple of 32), N = O · I numbers, M = N / 32 blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.errors import RecipeError
from luthier.quantization.blocks import dequantize_blocks
from luthier.quantization.codebooks import e2m1
from luthier.quantization.lookup import pack, unpack, unpack_scaled
from luthier.quantization.packed import PackedWeight

BLOCK = 32
_BIAS = 127
_LARGEST_EXPONENT = 2


class MXFP4Weight(PackedWeight):
    """A weight in MXFP4: its bytes (N / 2,) and the exponents of its blocks (M,), uint8."""

    kind = "mxfp4"

    def __init__(
        self, shape: tuple[int, int], bytes_H: Tensor, exponent_M: Tensor, compute: torch.dtype | None = None
    ) -> None:
        super().__init__(shape, compute)
        self.register_buffer("bytes_H", bytes_H)
        self.register_buffer("exponent_M", exponent_M)

    @property
    def scale_M(self) -> Tensor:
        """2^(e − 127), fp32, exact."""
        exponent_M = self.get_buffer("exponent_M").to(torch.int32) - _BIAS
        return torch.ldexp(torch.ones_like(exponent_M, dtype=torch.float32), exponent_M)

    def unpack_into(self, out_N: Tensor) -> None:
        """c · 2^(e − 127)."""
        unpack_scaled(self.get_buffer("bytes_H"), self.scale_M, BLOCK, e2m1(), "low-first", out_N)

    def reference(self) -> Tensor:
        """c · 2^(e − 127), by the formula."""
        codes_N = unpack(self.get_buffer("bytes_H"), self.shape[0] * self.shape[1], "low-first")
        return dequantize_blocks(codes_N, self.scale_M, e2m1(), BLOCK).view(self.shape)


@torch.no_grad()
def quantize_mxfp4(weight_OI: Tensor, compute: torch.dtype | None = None) -> MXFP4Weight:
    """A weight of any float format in MXFP4. Raises RecipeError if its inputs do not divide into blocks."""
    rows, columns = weight_OI.shape
    if columns % BLOCK:
        raise RecipeError(
            f"MXFP4 needs a multiple of {BLOCK} inputs; this layer has {columns}.",
            "Set quantization.kind to nf4, or name the layers in quantization.skip.",
            field="quantization.kind",
        )
    blocks_MS = weight_OI.float().reshape(-1, BLOCK)
    _, exponent_M = torch.frexp(blocks_MS.abs().amax(1))  # size = f · 2^exponent with f in [½, 1)
    power_M = (exponent_M - 1 - _LARGEST_EXPONENT).clamp(-_BIAS, _BIAS)
    scaled_N = torch.ldexp(blocks_MS, -power_M[:, None]).flatten()
    codes_N = nearest_even(scaled_N)
    return MXFP4Weight((rows, columns), pack(codes_N, "low-first"), (power_M + _BIAS).to(torch.uint8), compute)


def nearest_even(x_N: Tensor) -> Tensor:
    """The code of E2M1 nearest to each number; of two as near, the one whose last bit is 0, as floats are rounded."""
    sizes_8 = e2m1().values_on(x_N.device)[:8]
    edges_7 = (sizes_8[1:] + sizes_8[:-1]) / 2
    size_N = x_N.abs()
    above_N = torch.bucketize(size_N, edges_7, right=True)  # a tie goes up
    below_N = torch.bucketize(size_N, edges_7)  # a tie goes down
    codes_N = torch.where(above_N % 2 == 0, above_N, below_N)
    return (codes_N | (torch.signbit(x_N).long() << 3)).to(torch.uint8)
