"""The block formats of GGUF files, used as they are: Q4_0, Q4_1 and Q8_0 by our own code, the others by the `gguf` package.

The layouts are those of ggml's reference code. A block is of 32 numbers that lie along the inputs, and begins with its scale d
(and in Q4_1 its least number m), fp16:

    Q8_0:  w = d · q,  q int8              Q4_0:  w = d · (q − 8)              Q4_1:  w = d · q + m,

where the first sixteen numbers of a block of four-bit codes q are in the low halves of its sixteen bytes and the others in the high
ones. A number takes 8.5, 4.5 and 5 bits.
Shapes: O outputs, I inputs, M blocks, B bytes of a block.
"""

from __future__ import annotations

from collections.abc import Callable

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from torch import Tensor

from luthier.errors import RecipeError
from luthier.quantization.packed import PackedWeight

BLOCK = 32
_ROWS_AT_ONCE = 256
"""Rows that are unpacked at a time: what that takes beside the buffer stays small."""


class GGUFWeight(PackedWeight):
    """A weight in a GGUF file's own blocks: its bytes (O, bytes of a row)."""

    def __init__(
        self, shape: tuple[int, int], bytes_: Tensor, format_: Type, compute: torch.dtype | None = None
    ) -> None:
        super().__init__(shape, compute)
        self.kind = format_.name.lower()
        self.format = format_
        self.register_buffer("bytes", bytes_)

    def unpack_into(self, out_N: Tensor) -> None:
        """By the format's formula, some rows at a time: computed in fp32, rounded once."""
        unpack, out_OI = _UNPACK.get(self.format, self._by_package), out_N.view(self.shape)
        bytes_OB = self.get_buffer("bytes")
        for start in range(0, self.shape[0], _ROWS_AT_ONCE):
            rows = slice(start, min(start + _ROWS_AT_ONCE, self.shape[0]))
            out_OI[rows].copy_(unpack(bytes_OB[rows]).view(-1, self.shape[1]))

    def reference(self) -> Tensor:
        """By the `gguf` package."""
        return self._by_package(self.get_buffer("bytes")).view(self.shape)

    def _by_package(self, bytes_OB: Tensor) -> Tensor:
        numbers = gguf.dequantize(bytes_OB.cpu().numpy(), self.format)
        return torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.float32)).to(bytes_OB.device)


def gguf_weight(
    name: str, shape: tuple[int, int], raw: np.ndarray, format_: Type, compute: torch.dtype | None = None
) -> GGUFWeight:
    """The weight of a layer from a file's raw bytes. Raises RecipeError, naming the layer, for a format that cannot be unpacked."""
    if format_ not in _UNPACK and format_ not in gguf.quants._type_traits:
        raise RecipeError(
            f"The layer {name} is in {format_.name}, which the installed gguf package cannot unpack.",
            "Use a file in another format, such as Q4_K_M or Q8_0.",
            field="model",
        )
    return GGUFWeight(shape, torch.from_numpy(np.array(raw, copy=True)).view(shape[0], -1), format_, compute)


def _blocks(bytes_OB: Tensor, size: int) -> Tensor:
    """The blocks of rows, each as its bytes, shape (M, B)."""
    return bytes_OB.reshape(-1, size)


def _half(bytes_M2: Tensor) -> Tensor:
    """Pairs of bytes as fp16 numbers, in fp32, shape (M, 1)."""
    return bytes_M2.contiguous().view(torch.float16).float()


def _q8_0(bytes_OB: Tensor) -> Tensor:
    blocks_MB = _blocks(bytes_OB, 2 + BLOCK)
    return blocks_MB[:, 2:].contiguous().view(torch.int8).float().mul_(_half(blocks_MB[:, :2]))


def _codes(bytes_MH: Tensor) -> Tensor:
    """Four-bit codes in the order of their numbers, fp32, shape (M, 32)."""
    return torch.cat([bytes_MH & 15, bytes_MH >> 4], dim=1).float()


def _q4_0(bytes_OB: Tensor) -> Tensor:
    blocks_MB = _blocks(bytes_OB, 2 + BLOCK // 2)
    return _codes(blocks_MB[:, 2:]).sub_(8).mul_(_half(blocks_MB[:, :2]))


def _q4_1(bytes_OB: Tensor) -> Tensor:
    blocks_MB = _blocks(bytes_OB, 4 + BLOCK // 2)
    return _codes(blocks_MB[:, 4:]).mul_(_half(blocks_MB[:, :2])).add_(_half(blocks_MB[:, 2:4]))


_UNPACK: dict[Type, Callable[[Tensor], Tensor]] = {Type.Q8_0: _q8_0, Type.Q4_0: _q4_0, Type.Q4_1: _q4_1}
