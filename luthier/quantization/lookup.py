"""Two four-bit codes a byte, each block of them times its scale: how NF4, FP4 and MXFP4 are unpacked.

One look-up gives both numbers of a byte, and a block's scale is multiplied while they are still in the processor's cache.
Shapes: N numbers, H = ⌈N / 2⌉ bytes, S numbers in a block, M blocks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from luthier.ops.buffers import Buffers
from luthier.ops.kept import kept
from luthier.quantization.blocks import times_blocks
from luthier.quantization.codebooks import Codebook

Order = Literal["high-first", "low-first"]
"""Which half of a byte holds the first of its two numbers."""

_BYTES_AT_ONCE = 2**16
"""What is unpacked at a time: the numbers of so many bytes fit into the second cache."""

_BUFFERS = Buffers()


def pack(codes_N: Tensor, order: Order, filler: int = 0) -> Tensor:
    """Two codes a byte, shape (H,); an odd last one shares its byte with the filler."""
    if len(codes_N) % 2:
        codes_N = torch.cat([codes_N, codes_N.new_full((1,), filler)])
    first, second = codes_N[::2], codes_N[1::2]
    return (first << 4) | second if order == "high-first" else (second << 4) | first


def unpack(bytes_H: Tensor, count: int, order: Order) -> Tensor:
    """The codes, uint8, shape (count,)."""
    high, low = bytes_H >> 4, bytes_H & 15
    pairs = (high, low) if order == "high-first" else (low, high)
    return torch.stack(pairs, dim=1).flatten()[:count]


def unpack_scaled(bytes_H: Tensor, scale_M: Tensor, size: int, book: Codebook, order: Order, out_N: Tensor) -> None:
    """Write the values of the codes, each times its block's scale, into `out_N`: computed in fp32, rounded once."""
    pairs_256, device = _pairs(book, order, bytes_H.device), bytes_H.device
    step = max(_BYTES_AT_ONCE * 2 // size, 1) * size
    index_C = _BUFFERS.take("index", step // 2, torch.int32, device)
    values_2C = _BUFFERS.take("values", step, torch.float32, device)
    for start in _starts(out_N, step):
        out = out_N[start : start + step]
        piece_H = bytes_H[start // 2 : (start + len(out) + 1) // 2]
        index = index_C[: len(piece_H)].copy_(piece_H)
        fits = out.dtype == torch.float32 and len(out) % 2 == 0
        whole = out if fits else values_2C[: 2 * len(piece_H)]
        torch.index_select(pairs_256, 0, index, out=whole.view(torch.float64))
        scaled = whole[: len(out)]
        times_blocks(scaled, scale_M[start // size : -(-(start + len(out)) // size)], size)
        if not fits:
            out.copy_(scaled)


def _starts(out_N: Tensor, step: int) -> Iterable[int]:
    """Where the pieces begin; of tensors that only pretend the first and the last stand for all, which hold no more than they do."""
    starts = range(0, len(out_N), step)
    return dict.fromkeys((starts[0], starts[-1])) if isinstance(out_N, FakeTensor) and starts else starts


@kept()
def _pairs(book: Codebook, order: Order, device: torch.device) -> Tensor:
    """The two fp32 numbers that each byte stands for, as the 64 bits that they are together, shape (256,).

    They are moved as one fp64 number, which nothing computes with: four times as fast as a row of two.
    """
    values_K = book.values_K.to(device)
    codes = torch.arange(256, device=device)
    halves = [codes >> 4, codes & 15] if order == "high-first" else [codes & 15, codes >> 4]
    return values_K[torch.stack(halves, 1)].view(torch.float64).flatten()
