"""The texts of data files in pieces of some lines, read anew each time they are gone through, so that they are never all in memory.

A twentieth of the different pieces is held out, by their hash; none where there are too few. Of a piece are kept 12 bytes: its
hash, which says whether it is held out, and its length. Shapes: P pieces, in the order of the texts.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from luthier.data.reading import Row

_PIECE = 400
"""Characters from which on a text is cut at the next line break."""
_HELD_OUT = 20
"""One piece in so many is held out."""


class Pieces(Iterable[str]):
    """Pieces that are made anew each time they are gone through. count: how many there are."""

    def __init__(self, make: Callable[[], Iterator[str]], count: int) -> None:
        self._make = make
        self._count = count

    def __iter__(self) -> Iterator[str]:
        return self._make()

    def __length_hint__(self) -> int:
        return self._count


@dataclass(frozen=True)
class Corpus:
    """The texts of data files.

    train: the pieces to train on. held_out: each different one that is held out. num_texts, num_characters: of all texts;
    num_trained: characters to train on. times: how often each of some marks stands in the texts.
    """

    train: Pieces
    held_out: Pieces
    num_texts: int
    num_characters: int
    num_trained: int
    times: Mapping[str, int]


def corpus_of(first: Iterable[str], again: Callable[[], Iterable[str]], marks: Sequence[str] = ()) -> Corpus:
    """The corpus of texts. first: these; again: gives them once more each time. marks: what is counted in them."""
    num_texts, hashes, lengths, times = 0, array("Q"), array("I"), Counter[str]()
    for text in first:
        num_texts += 1
        for mark in marks:
            times[mark] += text.count(mark)
        for piece in pieces_of(text):
            hashes.append(_hash_of(piece))
            lengths.append(len(piece))
    hash_P, length_P = np.array(hashes, dtype=np.uint64), np.array(lengths, dtype=np.int64)
    different = np.unique(hash_P)
    num_held_out = len(different) // _HELD_OUT
    last = int(different[num_held_out - 1]) if num_held_out else -1
    trains_P = hash_P > last if num_held_out else np.ones(len(hash_P), dtype=np.bool_)

    def train() -> Iterator[str]:
        return (piece for text in again() for piece in pieces_of(text) if _hash_of(piece) > last)

    def held_out() -> Iterator[str]:
        seen: set[int] = set()
        for text in again() if num_held_out else ():
            for piece in pieces_of(text):
                key = _hash_of(piece)
                if key <= last and key not in seen:
                    seen.add(key)
                    yield piece

    return Corpus(
        Pieces(train, int(trains_P.sum())),
        Pieces(held_out, num_held_out),
        num_texts,
        int(length_P.sum()),
        int(length_P[trains_P].sum()),
        times,
    )


def texts_of(rows: Iterable[Row]) -> Iterator[str]:
    """Every text in the rows, whatever their form: in columns, messages and lists."""
    return (text for row in rows for text in _texts_in(row.values) if text)


def _texts_in(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts_in(part)


def pieces_of(text: str) -> Iterator[str]:
    """The text cut at line breaks."""
    piece: list[str] = []
    length = 0
    for line in text.splitlines(keepends=True):
        piece.append(line)
        length += len(line)
        if length >= _PIECE:
            yield "".join(piece)
            piece, length = [], 0
    if piece:
        yield "".join(piece)


def _hash_of(piece: str) -> int:
    return int.from_bytes(hashlib.sha256(piece.encode("utf-8", "surrogatepass")).digest()[:8], "big")
