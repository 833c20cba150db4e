"""NF4 and FP4: four bits a number and a scale a block, and the scales themselves in eight bits.

Dettmers et al. 2023, https://arxiv.org/abs/2305.14314, section 3. With c the code's value and m the mean of the scales,

    w = c · a,   a = d · a₂ + m,

where a is the greatest size in a block, and with double quantization d an eight-bit code for a − m in a block of 256 scales
whose greatest size is a₂. (The paper writes of 8-bit floats; the files hold codes of the dynamic map.) A number takes
4 + 32 / S bits, and with double quantization 4 + 8 / S + 32 / (256 S): 4.5 and 4.127 bits for blocks of 64.
Shapes: O outputs, I inputs, H bytes, S numbers in a block, M blocks, K blocks of 256 scales.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from luthier.ops.cuda_library import cuda_library
from luthier.quantization.blocks import dequantize_blocks, quantize_blocks
from luthier.quantization.codebooks import Codebook, dynamic_map, fp4, nf4
from luthier.quantization.lookup import pack, unpack, unpack_scaled
from luthier.quantization.packed import PackedWeight

FourBitKind = Literal["nf4", "fp4"]

SCALES_A_BLOCK = 256
"""How many scales share one of their own; files and kernels know no other number."""

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""The sizes of blocks that files and kernels know."""

_KERNEL_WRITES = (torch.float32, torch.bfloat16, torch.float16)


class PlainScales(nn.Module):
    """The greatest size in each block, fp32."""

    def __init__(self, scale_M: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale_M", scale_M)

    def forward(self) -> Tensor:
        """The scales (M,)."""
        return self.get_buffer("scale_M")


class DoubleScales(nn.Module):
    """The scales in eight bits: codes (M,) of their distance from their mean, the size of each block of 256, and the mean."""

    def __init__(self, codes_M: Tensor, size_K: Tensor, mean: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes_M", codes_M)
        self.register_buffer("size_K", size_K)
        self.register_buffer("mean", mean)

    def forward(self) -> Tensor:
        """The scales (M,)."""
        codes_M, size_K, book = self.get_buffer("codes_M"), self.get_buffer("size_K"), dynamic_map()
        library = cuda_library() if codes_M.is_cuda else None
        if library is None:
            scale_M = dequantize_blocks(codes_M, size_K, book, SCALES_A_BLOCK)
        else:
            scale_M = library.functional.dequantize_blockwise(
                codes_M, absmax=size_K, code=book.values_on(codes_M.device), blocksize=SCALES_A_BLOCK
            )
        return scale_M.add_(self.get_buffer("mean"))


Scales = PlainScales | DoubleScales


class FourBitWeight(PackedWeight):
    """A weight in NF4 or FP4."""

    def __init__(
        self,
        kind: FourBitKind,
        shape: tuple[int, int],
        block: int,
        bytes_H: Tensor,
        scales: Scales,
        compute: torch.dtype | None = None,
    ) -> None:
        super().__init__(shape, compute)
        self.kind = kind
        self.book = book_of(kind)
        self.block = block
        self.register_buffer("bytes_H", bytes_H)
        self.scales = scales

    def unpack_into(self, out_N: Tensor) -> None:
        """c · a; by one kernel of bitsandbytes where there is one, else look-up by look-up."""
        bytes_H, scale_M = self.get_buffer("bytes_H"), self.scales()
        library = cuda_library() if bytes_H.is_cuda and out_N.dtype in _KERNEL_WRITES else None
        if library is None:
            unpack_scaled(bytes_H, scale_M, self.block, self.book, "high-first", out_N)
        else:
            library.functional.dequantize_4bit(
                bytes_H, absmax=scale_M, out=out_N, blocksize=self.block, quant_type=self.kind
            )

    def reference(self) -> Tensor:
        """c · a, by the formula."""
        codes_N = unpack(self.get_buffer("bytes_H"), self.shape[0] * self.shape[1], "high-first")
        return dequantize_blocks(codes_N, self.scales(), self.book, self.block).view(self.shape)


def book_of(kind: FourBitKind) -> Codebook:
    """The codebook of a kind."""
    return nf4() if kind == "nf4" else fp4()


@torch.no_grad()
def quantize_four_bit(
    weight_OI: Tensor,
    kind: FourBitKind,
    *,
    block: int = 64,
    double: bool = True,
    compute: torch.dtype | None = None,
) -> FourBitWeight:
    """A weight of any float format in NF4 or FP4."""
    book = book_of(kind)
    codes_N, scale_M = quantize_blocks(weight_OI.reshape(-1), book, block)
    scales = double_scales(scale_M, dynamic_map()) if double else PlainScales(scale_M)
    bytes_H = pack(codes_N, "high-first", filler=int(book.nearest(torch.zeros(1))))
    rows, columns = weight_OI.shape
    return FourBitWeight(kind, (rows, columns), block, bytes_H, scales, compute)


def double_scales(scale_M: Tensor, book: Codebook) -> DoubleScales:
    """Scales in eight bits, around their mean."""
    mean = scale_M.mean()
    codes_M, size_K = quantize_blocks(scale_M - mean, book, SCALES_A_BLOCK)
    return DoubleScales(codes_M, size_K, mean)
