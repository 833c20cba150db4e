"""Examples of a few tokens, made by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from luthier.types import Example, Origin, Part, Rendered


def example_of(rendered: Rendered, document: int, origin: Origin) -> Example:
    """What supervised fine-tuning learns from a row: each token with a weight, from the place before it."""
    (learned_N,) = np.nonzero(rendered.weight_T[1:] > 0)
    return Example(
        parts=(Part(rendered.tokens_T),),
        source_N=learned_N.astype(np.int64),
        token_N=rendered.tokens_T[learned_N + 1],
        weight_N=rendered.weight_T[learned_N + 1],
        sample_N=np.zeros(len(learned_N), dtype=np.int64),
        document=document,
        origin=origin,
        source_S=rendered.source_S,
    )


def row_of(length: int, document: int) -> Example:
    """A row whose tokens tell the row and the place; the second half of it is learned."""
    tokens_T = np.arange(length, dtype=np.int64) + 1000 * (document + 1)
    weight_T = (np.arange(length) >= length // 2).astype(np.float32) * (1 + document % 3)
    weight_T[:1] = 0
    return example_of(Rendered(tokens_T, weight_T), document, Origin("rows.jsonl", document + 1))


def rows_of(lengths: Sequence[int]) -> list[Example]:
    """One row of each length."""
    return [row_of(length, document) for document, length in enumerate(lengths)]
