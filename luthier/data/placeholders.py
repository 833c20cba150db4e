"""Placeholder tokens: what a document begins with where an adapter puts virtual tokens before it.

They take positions 0 to V − 1, and what makes them (a learned prompt, a learned prefix) takes their place by position.
Which token stands there does not matter, so it is token 0, which every model has. Nothing is learned at them.
In an encoder-decoder they stand before the source, and for a prefix before the answer too.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from luthier.types import Example, IntArray

PLACEHOLDER = 0
"""The token that stands where a virtual token will be."""


def with_placeholders(example: Example, count: int, before_answer: int = 0) -> Example:
    """The example with `count` placeholders before each part that has no parent; its targets move along.

    For an encoder-decoder `count` of them stand before the source, and `before_answer` before the decoder's tokens.
    """
    if count == 0:
        return example
    assert example.num_virtual == 0, "one adapter's placeholders stand before a document"
    if example.source_S is not None:
        answer = _before_parts(example, before_answer) if before_answer else example
        source_S = np.concatenate([_placeholders(count), example.source_S])
        return replace(answer, source_S=source_S, num_virtual=answer.num_virtual + count)
    return _before_parts(example, count)


def _placeholders(count: int) -> IntArray:
    return np.full(count, PLACEHOLDER, dtype=np.int64)


def _before_parts(example: Example, count: int) -> Example:
    before = _placeholders(count)
    is_root = np.array([part.parent is None for part in example.parts])
    parts = tuple(
        replace(part, tokens_T=np.concatenate([before, part.tokens_T])) if part.parent is None else part
        for part in example.parts
    )
    starts = np.cumsum([0, *(len(part.tokens_T) for part in example.parts[:-1])])
    part_N = np.searchsorted(starts, example.source_N, side="right") - 1
    moved_N = example.source_N + count * np.cumsum(is_root)[part_N]
    types_P = example.types_P
    if types_P is not None:
        types_P = np.insert(types_P, np.repeat(starts[is_root], count), 0)
    return replace(example, parts=parts, source_N=moved_N, num_virtual=count * int(is_root.sum()), types_P=types_P)
