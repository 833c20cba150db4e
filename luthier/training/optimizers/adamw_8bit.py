"""AdamW with moments in eight bits.

Dettmers et al. 2022, https://arxiv.org/abs/2110.02861: blocks of 256 numbers of the flat tensor, each over the greatest size in
its block, as the nearest number of the dynamic map: with a sign for the mean of gradients, without one for that of squares. A step
unpacks a stretch of both moments, updates in fp32, and packs it again. Small tensors, and the embedding and the head,
whose rows get gradients of very different sizes, keep their moments in fp32.
State: 2 + 8 / 256 bytes a number.
"""

from __future__ import annotations

import math
from abc import ABC
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from luthier.quantization.blocks import dequantize_blocks, quantize_blocks
from luthier.quantization.codebooks import Codebook, dynamic_map
from luthier.training.optimizers.adamw import Adam, AdamWRule, adamw_update
from luthier.training.optimizers.contract import Allocate, Rule, State

BLOCK = 256
_AT_ONCE = BLOCK * 2**12
"""Numbers whose moments are unpacked at a time."""

_MOMENTS = {"exp_avg": True, "exp_avg_sq": False}
"""Each moment, and whether it has signs."""
_ZERO = {signed: int(dynamic_map(signed).nearest(torch.zeros(1))) for signed in (False, True)}
"""The code of zero, with and without a sign."""


class Adam8bit(Adam, ABC):
    """What the optimizers with moments in eight bits set alike."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2110.02861"

    full_below: int = Field(4096, ge=0, description="Tensors of fewer numbers keep their moments in fp32.")

    def packed(self, tensor: Tensor, is_table: bool) -> Rule:
        """The rule, by the tensor's size and use."""
        adamw = self.moments()
        return AdamW8bitRule(adamw) if self._packs(tensor.numel(), is_table) else adamw

    def _packs(self, count: int, is_table: bool) -> bool:
        return count >= self.full_below and not is_table

    def state_bytes(self, shape: tuple[int, ...], is_table: bool) -> int:
        """Two bytes for each number, and two scales for each block."""
        count = math.prod(shape)
        return 2 * (count + 4 * -(-count // BLOCK)) if self._packs(count, is_table) else 8 * count


class AdamW8bit(Adam8bit):
    """AdamW with moments in eight bits: Dettmers et al. 2022, https://arxiv.org/abs/2110.02861."""

    kind: Literal["adamw-8bit"] = "adamw-8bit"

    def rule(self, name: str, tensor: Tensor, is_table: bool) -> Rule:
        """By the tensor's size and use."""
        return self.packed(tensor, is_table)


class AdamW8bitRule(Rule):
    """AdamW on one tensor, with moments in eight bits."""

    def __init__(self, adamw: AdamWRule) -> None:
        self.adamw = adamw

    def fresh(self, tensor: Tensor, allocate: Allocate) -> State:
        """Codes of zero, in blocks of size zero."""
        count = tensor.numel()
        state = {}
        for moment, signed in _MOMENTS.items():
            codes = allocate(f"{moment}.codes", (count,), torch.uint8)
            codes.fill_(_ZERO[signed])
            state[f"{moment}.codes"] = codes
            state[f"{moment}.scales"] = allocate(f"{moment}.scales", (-(-count // BLOCK),), torch.float32)
        return state

    def update(self, tensor: Tensor, gradient: Tensor, state: State, step: int, lr: float, decay: float) -> None:
        """One step of AdamW, stretch by stretch."""
        flat, flat_gradient = tensor.view(-1), gradient.view(-1)
        for start in range(0, len(flat), _AT_ONCE):
            piece = slice(start, min(start + _AT_ONCE, len(flat)))
            of_blocks = slice(start // BLOCK, -(-piece.stop // BLOCK))
            packed = {
                moment: (state[f"{moment}.codes"][piece], state[f"{moment}.scales"][of_blocks]) for moment in _MOMENTS
            }
            mean, square = (unpacked(*packed[moment], dynamic_map(signed)) for moment, signed in _MOMENTS.items())
            adamw_update(flat[piece], flat_gradient[piece], mean, square, step, lr, decay, self.adamw)
            for moment, values in (("exp_avg", mean), ("exp_avg_sq", square)):
                codes, scales = quantize_blocks(values, dynamic_map(_MOMENTS[moment]), BLOCK)
                packed[moment][0].copy_(codes)
                packed[moment][1].copy_(scales)


def unpacked(codes: Tensor, scales: Tensor, book: Codebook) -> Tensor:
    """The numbers that codes in blocks stand for, fp32."""
    return dequantize_blocks(codes, scales, book, BLOCK)
