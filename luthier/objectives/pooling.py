"""Several texts of one row side by side, and which of a text's tokens speaks for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from luthier.types import Example, FloatArray, IntArray, Origin, Part, Rendered


def pooled_at(rendered: Rendered) -> int:
    """The token of a text that a head reads."""
    return 0 if rendered.pooled == "first" else len(rendered.tokens_T) - 1


def apart(
    texts: Sequence[Rendered],
    sources: Sequence[IntArray],
    weights: Sequence[FloatArray],
    document: int,
    origin: Origin,
) -> Example:
    """Texts that do not see each other as one example; text k's targets are its tokens `sources[k]`, of sample k."""
    starts = np.cumsum([0, *(len(text.tokens_T) for text in texts[:-1])])
    samples = [np.full(len(source_N), k, dtype=np.int64) for k, source_N in enumerate(sources)]
    types = [np.zeros_like(text.tokens_T) if text.types_T is None else text.types_T for text in texts]
    return Example(
        parts=tuple(Part(text.tokens_T) for text in texts),
        source_N=np.concatenate([source_N + start for source_N, start in zip(sources, starts, strict=True)]),
        token_N=np.zeros(sum(len(source_N) for source_N in sources), dtype=np.int64),
        weight_N=np.concatenate(weights).astype(np.float32),
        sample_N=np.concatenate(samples),
        document=document,
        origin=origin,
        types_P=None if all(text.types_T is None for text in texts) else np.concatenate(types),
    )
