"""Prefix language modelling: a text is cut in two; the model reads the first part and writes the second.

Raffel et al. 2019 (T5), https://arxiv.org/abs/1910.10683, section 3.2.1: the cut is uniform over 1 … L − 1, so that neither
part is empty. A decoder sees the first part in both directions; at a cut of 0 it would be plain language modelling.

Shapes: L tokens of a text.
"""

from __future__ import annotations

import numpy as np

from luthier.corruption.keyed import below
from luthier.errors import DataError
from luthier.types import IntArray


def split_point(length: int, draw: np.random.Generator) -> int:
    """How many tokens the first part has, each of 1 … length − 1 as likely. Raises: DataError for fewer than two tokens."""
    _check_length(length)
    return int(below(length - 1, 1, draw)[0]) + 1


def split_point_at(length: int, share: float) -> int:
    """How many tokens the first part has where the second is that share of the text, rounded half to even.

    Neither part is empty. Raises: DataError for fewer than two tokens.
    """
    _check_length(length)
    return length - min(max(round(length * share), 1), length - 1)


def cut_at(tokens_L: IntArray, at: int, *, eos_id: int | None) -> tuple[IntArray, IntArray]:
    """The first part as inputs and the second as targets, for an encoder-decoder; both end with `eos_id` if there is one."""
    end = np.array([] if eos_id is None else [eos_id], dtype=np.int64)
    return np.concatenate([tokens_L[:at], end]), np.concatenate([tokens_L[at:], end])


def _check_length(length: int) -> None:
    if length < 2:
        raise DataError(
            f"A text of {length} tokens cannot be cut in two parts that are not empty.",
            "Leave out texts of fewer than two tokens.",
        )
