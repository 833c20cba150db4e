"""Prompts computed side by side in one packed row without padding; what they begin with in common is computed once.

Shapes: B prompts, T tokens of the packed row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from luthier.ops.prefixes import common_prefix
from luthier.types import Segment

_LEAST_SHARED = 8  # a shorter common beginning costs more in bookkeeping than it saves


@dataclass(frozen=True)
class PackedPrompts:
    """Prompts in one row. segments_of: the pieces that each is made of; last_B: where its last token is."""

    tokens_1T: Tensor
    positions_1T: Tensor
    segments: tuple[Segment, ...]
    segments_of: tuple[tuple[Segment, ...], ...]
    last_B: Tensor


def pack_prompts(prompts: Sequence[Sequence[int]], *, shares_prefix: bool = True, causal: bool = True) -> PackedPrompts:
    """The prompts, each of at least one token, as one packed row.

    shares_prefix: what they begin with in common once. causal: each token sees those before it; else all of its prompt, whose
    beginning then has nothing in common with another's.
    """
    rows = [np.array(prompt, dtype=np.int64) for prompt in prompts]
    prefix = common_prefix(rows, min(len(row) for row in rows) - 1) if shares_prefix and causal and len(rows) > 1 else 0
    prefix = prefix if prefix >= _LEAST_SHARED else 0
    ends = np.cumsum([prefix, *(len(row) - prefix for row in rows)]).tolist()
    shared = (Segment(0, prefix),) if prefix else ()
    own = tuple(Segment(*span, parent=0 if prefix else None, causal=causal) for span in pairwise(ends))
    tokens = np.concatenate([rows[0][:prefix], *(row[prefix:] for row in rows)])
    positions = np.concatenate([np.arange(prefix), *(np.arange(prefix, len(row)) for row in rows)])
    return PackedPrompts(
        tokens_1T=torch.from_numpy(tokens)[None],
        positions_1T=torch.from_numpy(positions)[None],
        segments=(*shared, *own),
        segments_of=tuple((*shared, segment) for segment in own),
        last_B=torch.tensor([segment.end - 1 for segment in own]),
    )


def groups_within(lengths: Sequence[int], budget: int) -> list[range]:
    """Neighbouring prompts whose tokens together keep within the budget, or one that alone does not."""
    groups: list[range] = []
    start, tokens = 0, 0
    for index, length in enumerate(lengths):
        if index > start and tokens + length > budget:
            groups.append(range(start, index))
            start, tokens = index, 0
        tokens += length
    return [*groups, range(start, len(lengths))]
