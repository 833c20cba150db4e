"""Attention over a packed row by the CPU's fused kernel, block by block: no score between two documents is computed.

Shapes: H query heads, K key/value heads (H is a multiple of K), T tokens, E head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from luthier.ops.segments import ancestors
from luthier.types import Segment


class RowAttention(torch.autograd.Function):
    """All segments by the fused CPU kernel; the output lies in memory as (T, H, E), as the next layer reads it.

    A segment's own tokens and each of its ancestors are separate blocks of keys: out = Σ_b out_b exp(lse_b − lse) with
    lse = log Σ_b exp(lse_b), and given that out and lse, the gradient is the sum of the blocks' gradients.
    """

    @staticmethod
    def forward(
        ctx: Any, q_1HTE: Tensor, k_1KTE: Tensor, v_1KTE: Tensor, segments: tuple[Segment, ...], scale: float
    ) -> Tensor:
        out_1HTE, lse_1HT = _empty_by_token(q_1HTE), q_1HTE.new_empty(q_1HTE.shape[:3])
        for segment, to_out, to_lse, *parts in _by_segment(segments, out_1HTE, lse_1HT, q_1HTE, k_1KTE, v_1KTE):
            out, lse = _forward_kernel(segment.causal, scale, *parts)
            to_out.copy_(out)
            to_lse.copy_(lse)
        for queries, keys in _shared_blocks(segments):
            out, lse = _forward_kernel(False, scale, q_1HTE[:, :, queries], k_1KTE[:, :, keys], v_1KTE[:, :, keys])
            before = lse_1HT[:, :, queries]
            both = torch.logaddexp(before, lse)
            share = (before - both).exp_().unsqueeze(-1)
            out_1HTE[:, :, queries] = torch.lerp(out, out_1HTE[:, :, queries], share)
            lse_1HT[:, :, queries] = both
        ctx.save_for_backward(q_1HTE, k_1KTE, v_1KTE, out_1HTE, lse_1HT)
        ctx.segments, ctx.scale = segments, scale
        return out_1HTE

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        segments, scale = ctx.segments, ctx.scale
        asked_by = (grad_outputs[0], *ctx.saved_tensors)
        dq_1HTE, dk_1KTE, dv_1KTE = (_empty_by_token(x) for x in asked_by[1:4])
        for segment, to_dq, to_dk, to_dv, *parts in _by_segment(segments, dq_1HTE, dk_1KTE, dv_1KTE, *asked_by):
            dq, dk, dv = _backward_kernel(segment.causal, scale, *parts)
            to_dq.copy_(dq)
            to_dk.copy_(dk)
            to_dv.copy_(dv)
        for queries, keys in _shared_blocks(segments):
            places = (queries, queries, keys, keys, queries, queries)
            parts = [x[:, :, place] for x, place in zip(asked_by, places, strict=True)]
            dq, dk, dv = _backward_kernel(False, scale, *parts)
            dq_1HTE[:, :, queries] += dq
            dk_1KTE[:, :, keys] += dk
            dv_1KTE[:, :, keys] += dv
        return dq_1HTE, dk_1KTE, dv_1KTE, None, None


def _forward_kernel(is_causal: bool, scale: float, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The output of a block, and the logarithm of its sum of exponentials."""
    found: tuple[Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, is_causal, scale=scale
    )
    return found


def _backward_kernel(
    is_causal: bool, scale: float, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of a block for q, k and v, given the output and the logarithm of all blocks together."""
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        dout, q, k, v, out, lse.contiguous(), 0.0, is_causal, scale=scale
    )
    return found


def _by_segment(segments: tuple[Segment, ...], *tensors: Tensor) -> Iterator[tuple[Any, ...]]:
    """Each segment with its part of each tensor, whose third axis is the row's tokens."""
    lengths = [segment.length for segment in segments]
    return zip(segments, *(tensor.split(lengths, dim=2) for tensor in tensors), strict=True)


def _empty_by_token(x_1HTE: Tensor) -> Tensor:
    """The same shape, in memory as (T, H, E): so it reaches the projections without a copy."""
    return torch.empty_like(x_1HTE.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


@lru_cache(maxsize=64)
def _shared_blocks(segments: tuple[Segment, ...]) -> list[tuple[slice, slice]]:
    """Queries and the ancestor that they see, all of it: neighbours that share one meet it together."""
    blocks = []
    parents = {segment.parent for segment in segments}
    for index, seen in enumerate(segments):
        start: int | None = None
        if index not in parents:
            continue
        for other, segment in enumerate([*segments, None]):
            is_below = segment is not None and other != index and index in ancestors(segments, other)
            if is_below and segment is not None:
                start, end = segment.start if start is None else start, segment.end
            elif start is not None:
                blocks.append((slice(start, end), slice(seen.start, seen.end)))
                start = None
    return blocks


@cache
def has_cpu_kernel() -> bool:
    """Whether this torch has the operation that its own attention calls on a CPU, which is not a public one."""
    names = ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward")
    try:
        return all(getattr(torch.ops.aten, name) is not None for name in names)
    except AttributeError:
        return False
