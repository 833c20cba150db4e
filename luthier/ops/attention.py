"""Attention over a packed row, document by document.

A segment sees itself (its past only, if causal) and the whole of its ancestors. The fast path calls the fused kernel
once for each segment, so that no score between two documents is ever computed. On a CPU that is one operation for the
whole row, which keeps q, k, v and its output once; on a CUDA device with half precision all segments without parents go
to one variable-length kernel. The reference computes one dense mask over the row.

Shapes: H query heads, K key/value heads (H is a multiple of K), T tokens, E head width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.ops.kept import kept
from luthier.ops.row_attention import RowAttention, has_cpu_kernel
from luthier.ops.segments import ancestors, block_mask, dense_mask, depths
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
    is_dense = terms.is_plain and _window_is_idle(terms.window, max(depths(segments)))
    if q_1HTE.device.type == "cpu" and is_fp32 and is_dense and has_cpu_kernel():
        out_1HTE = RowAttention.apply(q_1HTE, k_1KTE, v_1KTE, tuple(segments), terms.scale)  # type: ignore[no-untyped-call]
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
        mask = block_mask(segment.length, k.shape[2], segment.causal, terms.window, q_1HTE.device)
        outputs.append(masked_attention(q_parts[index], k, v, mask, terms))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


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


@kept(64)
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
