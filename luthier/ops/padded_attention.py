"""Attention over a packed row of many short segments, as the products of a batch that they are padded to.

A call of the fused kernel costs as much as thirty tokens in it; where segments are shorter, padding costs less. Groups of
like length keep what is added below the whole. Every score is kept for the backward pass, so segments must be short.
Shapes: H query heads, K key/value heads (H is a multiple of K), T tokens, E head width, B segments of a group, each padded to
Q queries and M keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from luthier.ops.segments import ancestors, block_mask, depths
from luthier.types import Segment

_SHORT = 64
"""Tokens that no segment has more of where all of a row are computed together; with what they see, twice as many."""
_SHORT_ON_AVERAGE = 32
"""Tokens that segments have on average, at most, where they are."""
_LEAST_SHORT = 4
"""Segments from which on that pays."""


def are_short(segments: Sequence[Segment]) -> bool:
    """Whether calling the kernel for each segment costs more than what padding adds, and than to keep every score."""
    return (
        len(segments) >= _LEAST_SHORT
        and segments[-1].end <= _SHORT_ON_AVERAGE * len(segments)
        and max(segment.length for segment in segments) <= _SHORT
        and max(depths(segments)) <= 2 * _SHORT
    )


@dataclass(frozen=True)
class _Group:
    """B segments padded to Q queries and, with all that they see, to M keys; H heads, of which groups share one of K.

    queries_N: which token each of the B · Q queries is; keys_N: likewise of the B · M keys. mask: 0 where a query sees a key
    and −∞ elsewhere, shape (B K, Q H / K, M).
    """

    queries_N: Tensor
    keys_N: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Padding:
    """All segments in groups of like length. place_T: where each token stands among the queries of all groups."""

    groups: tuple[_Group, ...]
    place_T: Tensor


@lru_cache(maxsize=16)
def padding_of(segments: tuple[Segment, ...], window: int | None, key_heads: int, sharing: int) -> Padding:
    """How a row is padded, where `sharing` query heads share each of the key heads."""
    chosen = _of_like_length(segments)
    groups = tuple(_group(segments, indices, window, key_heads, sharing) for indices in chosen)
    place_T, before = torch.empty(segments[-1].end, dtype=torch.long), 0
    for indices in chosen:
        longest = segments[indices[0]].length
        for row, index in enumerate(indices):
            segment = segments[index]
            place_T[segment.start : segment.end] = before + row * longest + torch.arange(segment.length)
        before += len(indices) * longest
    return Padding(groups, place_T)


def _of_like_length(segments: tuple[Segment, ...]) -> list[list[int]]:
    """The segments in groups, longest first; none is less than half as long as the longest of its group."""
    groups: list[list[int]] = []
    for index in sorted(range(len(segments)), key=lambda index: -segments[index].length):
        if not groups or 2 * segments[index].length < segments[groups[-1][0]].length:
            groups.append([])
        groups[-1].append(index)
    return groups


def _group(
    segments: tuple[Segment, ...], indices: Sequence[int], window: int | None, key_heads: int, sharing: int
) -> _Group:
    chains = [
        torch.cat([torch.arange(segments[i].start, segments[i].end) for i in ancestors(segments, index)])
        for index in indices
    ]
    most_queries, most_keys = segments[indices[0]].length, max(map(len, chains))
    queries_BQ = torch.zeros(len(indices), most_queries, dtype=torch.long)
    keys_BM = torch.zeros(len(indices), most_keys, dtype=torch.long)
    mask_BQM = torch.zeros(len(indices), most_queries, most_keys)  # a query of the padding sees all; nobody asks it
    for row, (index, keys) in enumerate(zip(indices, chains, strict=True)):
        length = segments[index].length
        queries_BQ[row, :length] = keys[-length:]
        keys_BM[row, : len(keys)] = keys
        mask_BQM[row, :length, len(keys) :] = -torch.inf
        seen = block_mask(length, len(keys), segments[index].causal, window, keys.device)
        if seen is not None:
            mask_BQM[row, :length, : len(keys)].masked_fill_(~seen, -torch.inf)
    by_head = mask_BQM[:, None, None].expand(len(indices), key_heads, sharing, most_queries, most_keys)
    return _Group(queries_BQ.flatten(), keys_BM.flatten(), by_head.reshape(-1, sharing * most_queries, most_keys))


def padded_attention(q_1HTE: Tensor, k_1KTE: Tensor, v_1KTE: Tensor, padding: Padding, scale: float) -> Tensor:
    """softmax(q kᵀ · scale + mask) v, group by group; heads that share keys are rows of one product."""
    _, heads, num_tokens, width = q_1HTE.shape
    outputs = []
    for group in padding.groups:
        products = len(group.mask)
        rows = products // k_1KTE.shape[1]
        q = _padded(q_1HTE, group.queries_N, rows).reshape(products, -1, width)
        k, v = (_padded(x, group.keys_N, rows).reshape(products, -1, width) for x in (k_1KTE, v_1KTE))
        weight = torch.baddbmm(group.mask, q, k.transpose(1, 2), alpha=scale).softmax(-1)
        out_BHQE = torch.bmm(weight, v).view(rows, heads, -1, width)
        outputs.append(out_BHQE.transpose(1, 2).reshape(-1, heads * width))
    out_TF = torch.cat(outputs).index_select(0, padding.place_T)
    return out_TF.view(1, num_tokens, heads, width).transpose(1, 2)


def _padded(x_1HTE: Tensor, index_N: Tensor, rows: int) -> Tensor:
    """The tokens of an index, row by row, shape (B, H, N / B, E)."""
    _, heads, num_tokens, width = x_1HTE.shape
    taken_NF = x_1HTE[0].transpose(0, 1).reshape(num_tokens, -1).index_select(0, index_N)
    return taken_NF.view(rows, -1, heads, width).transpose(1, 2)
