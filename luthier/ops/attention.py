"""Attention over a packed row, document by document.

A segment sees itself (its past only, if causal) and the whole of its ancestors. The fast path calls the fused kernel
once for each segment, so that no score between two documents is ever computed. On a CPU that is one operation for the
whole row, which keeps q, k, v and its output once; on a CUDA device with half precision all segments without parents go
to one variable-length kernel. The reference computes one dense mask over the row.

Shapes: H query heads, K key/value heads (H is a multiple of K), T tokens, E head width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.types import Segment


@dataclass(frozen=True)
class AttentionTerms:
    """What a family adds to plain attention.

    scale: factor on q·k. window: a query sees the `window` latest positions only (itself included). softcap: scores
    become softcap · tanh(score / softcap). sinks_H: one extra logit a head that takes mass and gives nothing.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks_H: Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the fused kernels compute it."""
        return self.softcap is None and self.sinks_H is None


def ancestors(segments: Sequence[Segment], index: int) -> list[int]:
    """The segments that segment `index` sees, oldest first, itself last."""
    chain = [index]
    while (parent := segments[chain[-1]].parent) is not None:
        chain.append(parent)
    return chain[::-1]


def segment_positions(segments: Sequence[Segment]) -> list[int]:
    """For each segment, the position of its first token: its parent's end, or 0."""
    starts: list[int] = []
    for segment in segments:
        parent = segment.parent
        starts.append(0 if parent is None else starts[parent] + segments[parent].length)
    return starts


def _depth(segments: Sequence[Segment]) -> list[int]:
    """For each segment, the position after its last token."""
    return [start + s.length for start, s in zip(segment_positions(segments), segments, strict=True)]


@lru_cache(maxsize=512)
def _block_mask(queries: int, keys: int, causal: bool, window: int | None, device: torch.device) -> Tensor | None:
    """What the last `queries` of `keys` positions see, True where seen; None if they see everything."""
    key_K = torch.arange(keys, device=device)
    query_Q = torch.arange(keys - queries, keys, device=device)[:, None]
    mask_QK = torch.ones(queries, keys, dtype=torch.bool, device=device)
    if causal:
        mask_QK &= key_K <= query_Q
    if window is not None:
        mask_QK &= key_K > query_Q - window
    return None if bool(mask_QK.all()) else mask_QK


def dense_mask(segments: Sequence[Segment], num_tokens: int, window: int | None, device: torch.device) -> Tensor:
    """What each token of the row sees, True where seen, shape (T, T)."""
    mask_TT = torch.zeros(num_tokens, num_tokens, dtype=torch.bool, device=device)
    for index, segment in enumerate(segments):
        chain = ancestors(segments, index)
        keys = torch.cat([torch.arange(segments[i].start, segments[i].end, device=device) for i in chain])
        seen_QK = _block_mask(segment.length, len(keys), segment.causal, window, device)
        rows = torch.arange(segment.start, segment.end, device=device)
        mask_TT[rows[:, None], keys] = True if seen_QK is None else seen_QK
    return mask_TT


def masked_attention(
    q_BHQE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor, mask: Tensor | None, terms: AttentionTerms
) -> Tensor:
    """Attention under a mask that broadcasts to (B, H, Q, T); None sees everything. Shape (B, H, Q, E).

    A mask of truth values says what is seen; one of numbers is added to the scores, in plain attention only.
    """
    if terms.is_plain and q_BHQE.shape[2] == 1 and q_BHQE.shape[1] != k_BKTE.shape[1]:
        # one new token: the heads that share keys go in as its queries, so that the keys are read once for all of them
        q_BKGE = q_BHQE.reshape(len(q_BHQE), k_BKTE.shape[1], -1, q_BHQE.shape[-1])
        out_BKGE = F.scaled_dot_product_attention(q_BKGE, k_BKTE, v_BKTE, attn_mask=mask, scale=terms.scale)
        return out_BKGE.reshape(q_BHQE.shape)
    if terms.is_plain:
        return F.scaled_dot_product_attention(
            q_BHQE, k_BKTE, v_BKTE, attn_mask=mask, scale=terms.scale, enable_gqa=q_BHQE.shape[1] != k_BKTE.shape[1]
        )
    weight_BHQT = attention_weights(q_BHQE, k_BKTE, mask, terms)
    v_BHTE = v_BKTE.repeat_interleave(q_BHQE.shape[1] // v_BKTE.shape[1], dim=1)
    return weight_BHQT.to(v_BHTE.dtype) @ v_BHTE


def narrowed(mask: Tensor | None, is_seen: Tensor) -> Tensor:
    """A mask, as `masked_attention` takes it, under which of what it lets see only this is seen; None sees everything."""
    if mask is None or mask.dtype == torch.bool:
        return is_seen if mask is None else mask & is_seen
    return mask.masked_fill(~is_seen, torch.finfo(mask.dtype).min)


def attention_weights(q_BHQE: Tensor, k_BKTE: Tensor, mask: Tensor | None, terms: AttentionTerms) -> Tensor:
    """How much each query takes of each position, fp32, shape (B, H, Q, T); with sinks the rows sum to less than 1."""
    k_BHTE = k_BKTE.repeat_interleave(q_BHQE.shape[1] // k_BKTE.shape[1], dim=1)
    score_BHQT = (q_BHQE @ k_BHTE.transpose(-1, -2)).float() * terms.scale
    if terms.softcap is not None:
        score_BHQT = torch.tanh(score_BHQT / terms.softcap) * terms.softcap
    if mask is not None:
        # not −∞: a query that sees nothing (left padding) would become NaN, and reach others as 0 · NaN a layer later
        score_BHQT = score_BHQT.masked_fill(~mask, torch.finfo(score_BHQT.dtype).min)
    if terms.sinks_H is not None:
        sink = terms.sinks_H.float().view(1, -1, 1, 1).expand(*score_BHQT.shape[:3], 1)
        score_BHQT = torch.cat([score_BHQT, sink], dim=-1)
    return score_BHQT.softmax(-1)[..., : k_BHTE.shape[2]]


def packed_attention_reference(
    q_1HTE: Tensor, k_1KTE: Tensor, v_1KTE: Tensor, segments: Sequence[Segment], terms: AttentionTerms
) -> Tensor:
    """Attention over the packed row under one dense mask, shape (1, H, T, E)."""
    mask_TT = dense_mask(segments, q_1HTE.shape[2], terms.window, q_1HTE.device)
    return masked_attention(q_1HTE, k_1KTE, v_1KTE, mask_TT, terms)


def packed_attention(
    q_1HTE: Tensor, k_1KTE: Tensor, v_1KTE: Tensor, segments: Sequence[Segment], terms: AttentionTerms
) -> Tensor:
    """The same as `packed_attention_reference`, segment by segment."""
    if _fits_varlen_kernel(q_1HTE, segments, terms):
        return _varlen_attention(q_1HTE, k_1KTE, v_1KTE, segments, terms)
    is_fp32 = q_1HTE.dtype == k_1KTE.dtype == v_1KTE.dtype == torch.float32
    is_dense = terms.is_plain and _window_is_idle(terms.window, max(_depth(segments)))
    if q_1HTE.device.type == "cpu" and is_fp32 and is_dense and has_cpu_kernel():
        out_1HTE = _RowAttention.apply(q_1HTE, k_1KTE, v_1KTE, tuple(segments), terms.scale)  # type: ignore[no-untyped-call]
        return cast(Tensor, out_1HTE)
    lengths = [segment.length for segment in segments]
    q_parts = q_1HTE.split(lengths, dim=2)  # split and cat: their backward passes touch each number once
    k_parts = k_1KTE.split(lengths, dim=2)
    v_parts = v_1KTE.split(lengths, dim=2)
    outputs = []
    for index, segment in enumerate(segments):
        chain = ancestors(segments, index)
        if len(chain) == 1 and segment.causal and terms.is_plain and _window_is_idle(terms.window, segment.length):
            outputs.append(_causal(q_parts[index], k_parts[index], v_parts[index], terms.scale))
            continue
        k = torch.cat([k_parts[i] for i in chain], dim=2)
        v = torch.cat([v_parts[i] for i in chain], dim=2)
        mask = _block_mask(segment.length, k.shape[2], segment.causal, terms.window, q_1HTE.device)
        outputs.append(masked_attention(q_parts[index], k, v, mask, terms))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


class _RowAttention(torch.autograd.Function):
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


def _causal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])


def _window_is_idle(window: int | None, length: int) -> bool:
    return window is None or length <= window


def _fits_varlen_kernel(q_1HTE: Tensor, segments: Sequence[Segment], terms: AttentionTerms) -> bool:
    if q_1HTE.device.type != "cuda" or q_1HTE.dtype not in (torch.float16, torch.bfloat16) or not terms.is_plain:
        return False
    if varlen_kernel() is None:
        return False
    return all(s.causal and s.parent is None for s in segments)


@cache
def varlen_kernel() -> Callable[..., Any] | None:
    """torch's variable-length attention, if this torch has it with a scale and a window of one's own."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    takes: set[str] = set(inspect.signature(varlen_attn).parameters)
    return varlen_attn if {"scale", "window_size"} <= takes else None


@lru_cache(maxsize=64)
def _bounds(segments: tuple[Segment, ...], device: torch.device) -> Tensor:
    """Where the segments of a row begin and the last one ends, as the kernel takes it; the same in every layer."""
    return torch.tensor([0, *[s.end for s in segments]], dtype=torch.int32, device=device)


def _varlen_attention(
    q_1HTE: Tensor, k_1KTE: Tensor, v_1KTE: Tensor, segments: Sequence[Segment], terms: AttentionTerms
) -> Tensor:
    """All segments in one call of torch's variable-length kernel (CUDA, half precision)."""
    varlen_attn = varlen_kernel()
    assert varlen_attn is not None
    bounds = _bounds(tuple(segments), q_1HTE.device)
    longest = max(s.length for s in segments)
    group = q_1HTE.shape[1] // k_1KTE.shape[1]
    wide = (x if group == 1 else x.repeat_interleave(group, dim=1) for x in (k_1KTE, v_1KTE))
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (q_1HTE, *wide))
    out_THE: Tensor = varlen_attn(
        q, k, v, bounds, bounds, longest, longest,
        scale=terms.scale,
        window_size=(-1 if terms.window is None else terms.window - 1, 0),
    )  # fmt: skip
    return out_THE.transpose(0, 1).unsqueeze(0)
