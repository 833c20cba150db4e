"""Random whole texts, as if they had been rendered."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from models.tiny import VOCABULARY

from luthier.types import Origin, Pooled, Rendered

ORIGIN = Origin("rows.jsonl", 4)


def text(length: int, seed: int, pooled: Pooled = "first", *, second: int = 0) -> Rendered:
    """A text of random tokens; second: how many of them, at the end, belong to a second text."""
    tokens_T = np.random.default_rng(seed * 100 + length).integers(3, VOCABULARY - 1, length, dtype=np.int64)
    types_T = (np.arange(length) >= length - second).astype(np.int64) if second else None
    return Rendered(tokens_T, np.zeros(length, dtype=np.float32), types_T=types_T, pooled=pooled)


def side_by_side(lengths: tuple[int, ...], seed: int, pooled: Pooled = "first", chosen: int = 0) -> Rendered:
    """Texts of these lengths, of one row."""
    texts = [text(length, seed * 10 + index, pooled) for index, length in enumerate(lengths)]
    return replace(texts[0], beside=tuple(texts[1:]), chosen=chosen)
