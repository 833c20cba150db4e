"""The geometry of a packed row: which segments a segment sees, and which of their tokens.

A segment sees itself (its past only, if causal) and the whole of its ancestors.
Shapes: T tokens of the row, Q queries, K keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from luthier.ops.kept import kept
from luthier.types import Segment


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


@kept(64)
def early_tokens(
    segments: tuple[Segment, ...], before: int, stretch: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Which tokens of a stretch of the row stand at positions before that one, counted from its start, and their positions."""
    found = [
        (segment.start + offset - stretch[0], first + offset)
        for segment, first in zip(segments, segment_positions(segments), strict=True)
        for offset in range(min(segment.length, max(before - first, 0)))
        if stretch[0] <= segment.start + offset < stretch[1]
    ]
    both_M2 = torch.tensor(found, dtype=torch.long, device=device).view(-1, 2)
    return both_M2[:, 0], both_M2[:, 1]


def depths(segments: Sequence[Segment]) -> list[int]:
    """For each segment, the position after its last token."""
    return [start + s.length for start, s in zip(segment_positions(segments), segments, strict=True)]


@kept(512)
def block_mask(queries: int, keys: int, causal: bool, window: int | None, device: torch.device) -> Tensor | None:
    """What the last `queries` of `keys` positions see, True where seen; None if they see everything."""
    if not (causal and queries > 1) and (window is None or window >= keys):
        return None
    key_K = torch.arange(keys, device=device)
    query_Q = torch.arange(keys - queries, keys, device=device)[:, None]
    mask_QK = torch.ones(queries, keys, dtype=torch.bool, device=device)
    if causal:
        mask_QK &= key_K <= query_Q
    if window is not None:
        mask_QK &= key_K > query_Q - window
    return mask_QK


def dense_mask(segments: Sequence[Segment], num_tokens: int, window: int | None, device: torch.device) -> Tensor:
    """What each token of the row sees, True where seen, shape (T, T)."""
    mask_TT = torch.zeros(num_tokens, num_tokens, dtype=torch.bool, device=device)
    for index, segment in enumerate(segments):
        chain = ancestors(segments, index)
        keys = torch.cat([torch.arange(segments[i].start, segments[i].end, device=device) for i in chain])
        seen_QK = block_mask(segment.length, len(keys), segment.causal, window, device)
        rows = torch.arange(segment.start, segment.end, device=device)
        mask_TT[rows[:, None], keys] = True if seen_QK is None else seen_QK
    return mask_TT
