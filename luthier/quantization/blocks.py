"""Numbers as codes, block by block: each block of neighbours is divided by the greatest size in it.

Dettmers et al. 2022, https://arxiv.org/abs/2110.02861, section 2: blocks of the flat tensor, so that a large number makes
only its own block coarse. A block's numbers are multiplied by the reciprocal of its size, as kernels do; only the last block,
if it is not whole, is divided: codes near a border depend on which.
Shapes: N numbers, S size of a block, M blocks, of which the last may be shorter.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from luthier.quantization.codebooks import Codebook

_TINY = 1e-38
"""Below the least normal fp32 number: a block of zeros is divided by this."""

_AT_ONCE = 2**20
"""Numbers that are scaled at a time: what that takes beside the weight stays small."""


def quantize_blocks(values_N: Tensor, book: Codebook, size: int) -> tuple[Tensor, Tensor]:
    """The codes (N,), uint8, and the greatest size of each block (M,), fp32. values_N: of any float format."""
    codes_N = torch.empty(len(values_N), dtype=torch.uint8, device=values_N.device)
    scales = []
    for start, stop in _pieces(len(values_N), size):
        scaled, scale_M = scaled_blocks(values_N[start:stop].float(), size)
        codes_N[start:stop] = book.nearest(scaled)
        scales.append(scale_M)
    return codes_N, torch.cat(scales)


def scaled_blocks(values_N: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Each number over the greatest size in its block, in [−1, 1], shape (N,), and those sizes, shape (M,)."""
    whole = len(values_N) // size * size
    blocks_MS, rest_R = values_N[:whole].view(-1, size), values_N[whole:]
    scale_M = blocks_MS.abs().amax(1) if whole else values_N.new_zeros(0)
    scaled_N = (blocks_MS * (1 / scale_M.clamp(min=_TINY))[:, None]).flatten()
    if len(rest_R):
        scale_1 = rest_R.abs().amax(keepdim=True)
        scaled_N = torch.cat([scaled_N, rest_R / scale_1.clamp(min=_TINY)])
        scale_M = torch.cat([scale_M, scale_1])
    return scaled_N.clamp(-1, 1), scale_M


def dequantize_blocks(codes_N: Tensor, scale_M: Tensor, book: Codebook, size: int) -> Tensor:
    """Value of the code times size of the block, fp32, shape (N,)."""
    values_N = book.values_on(codes_N.device).index_select(0, codes_N.int())
    times_blocks(values_N, scale_M, size)
    return values_N


def times_blocks(values_N: Tensor, scale_M: Tensor, size: int) -> None:
    """Multiply each block, of which the last may be shorter, by its scale."""
    whole = len(values_N) // size
    values_N[: whole * size].view(-1, size).mul_(scale_M[:whole, None])
    if whole * size < len(values_N):
        values_N[whole * size :].mul_(scale_M[-1])


def _pieces(count: int, size: int) -> Iterator[tuple[int, int]]:
    """Where pieces of whole blocks begin and end."""
    step = max(_AT_ONCE // size, 1) * size
    yield from ((start, min(start + step, count)) for start in range(0, count, step))
