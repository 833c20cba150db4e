"""Fill in the middle: a part of a text is moved to its end, so that a causal model learns to write it between the others.

Bavarian et al. 2022, https://arxiv.org/abs/2207.14255. With probability `rate` a text is cut at two places, uniform over the
len + 1 places between its characters, in ascending order; parts may be empty. Prefix, middle and suffix are encoded each by
itself, so that a model meets cuts within what would be one token. With marks between them they come in one of two orders:

    psm    ⟨prefix⟩ P ⟨suffix⟩ S ⟨middle⟩ M end
    spm    ⟨prefix⟩ ⟨suffix⟩ S ⟨middle⟩ P M end        (the paper's variant 2)

The end lets a model that fills a gap say that it is done. All tokens are learned, as in plain language modelling.
A row that holds several documents, each behind the end of another, is cut document by document (the paper's context level).
A text can keep its length, as in the program that StarCoder came from: the suffix loses at its end what the marks take, or
is padded there.

Shapes: P, M and S tokens of the prefix, the middle and the suffix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from luthier.corruption.keyed import below
from luthier.types import IntArray

Order = Literal["psm", "spm"]


@dataclass(frozen=True)
class Marks:
    """The ids of the marks; end: what follows the middle, None: nothing; pad: what lengthens a suffix, where one is to be."""

    prefix: int
    suffix: int
    middle: int
    end: int | None
    pad: int | None = None


def choose_order(draw: np.random.Generator, *, rate: float = 0.5, spm_rate: float = 0.5) -> Order | None:
    """The order that a text's parts come in, `spm` with probability spm_rate; None, with probability 1 − rate: stay whole."""
    is_cut, is_spm = draw.random(2) < (rate, spm_rate)
    if not is_cut:
        return None
    return "spm" if is_spm else "psm"


def split_middle(text: str, draw: np.random.Generator) -> tuple[str, str, str]:
    """Prefix, middle and suffix, which are the text again one after another; cuts are between characters, never bytes."""
    start, stop = cut_places(len(text), draw)
    return text[:start], text[start:stop], text[stop:]


def cut_places(length: int, draw: np.random.Generator) -> tuple[int, int]:
    """Where the middle of something of that length begins and ends, uniform over the length + 1 places, in order."""
    start, stop = np.sort(below(length + 1, 2, draw)).tolist()
    return start, stop


def documents_of(tokens_T: IntArray, end_id: int) -> list[IntArray]:
    """The documents of a row, each with the end behind it; the last may have none."""
    (ends,) = np.nonzero(tokens_T[:-1] == end_id)
    return np.split(tokens_T, ends + 1)


def fill_in_middle(
    prefix_P: IntArray, middle_M: IntArray, suffix_S: IntArray, order: Order, marks: Marks, *, length: int | None = None
) -> IntArray | None:
    """The parts with their marks in that order.

    length: how many tokens there are to be, by cutting or padding the suffix; None for as many as come out.
    Returns None where the suffix would have to be cut away whole: the text should then stay as it was.
    """
    if length is not None:
        spare = length - len(prefix_P) - len(middle_M) - len(suffix_S) - 3 - (marks.end is not None)
        if spare < 0:
            if len(suffix_S) <= -spare:
                return None
            suffix_S = suffix_S[:spare]
        elif spare > 0:
            assert marks.pad is not None, "a suffix is lengthened with padding"
            suffix_S = np.concatenate([suffix_S, np.full(spare, marks.pad)])
    prefix, suffix, middle = (np.array([mark]) for mark in (marks.prefix, marks.suffix, marks.middle))
    end = np.array([] if marks.end is None else [marks.end], dtype=np.int64)
    if order == "psm":
        return np.concatenate([prefix, prefix_P, suffix, suffix_S, middle, middle_M, end])
    return np.concatenate([prefix, suffix, suffix_S, middle, prefix_P, middle_M, end])
