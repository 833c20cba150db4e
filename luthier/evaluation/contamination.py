"""Which rows that a model is measured on stand in the rows that it learned from: word for word, or nearly.

Rows are near where their shingles (words and pairs of words) have a Jaccard similarity of at least `NEAR`; rows meet in the
buckets of MinHash, so the training rows stream by, and only what is kept of the measured rows is held.

Shapes: R rows of a chunk, B bands.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from luthier.data.checks.minhash import MinHash, band_keys, shingle_array, shingles, words_of
from luthier.types import (
    Choice,
    Completion,
    Conversation,
    Labelled,
    PlainText,
    Preference,
    Prompt,
    Ranking,
    Record,
    Scored,
    Similar,
    Tagged,
    Verdict,
)

NEAR = 0.8
_ROWS_OF_CHUNK = 500
_SHOWN = 5


@dataclass(frozen=True)
class Contamination:
    """How many rows were looked at on both sides, and which measured rows (their indices) were learned, exactly or nearly."""

    num_rows: int
    num_trained: int
    exact: tuple[int, ...]
    near: tuple[int, ...]

    @property
    def note(self) -> str | None:
        """What is to be said of it of the run's own model; None where there is nothing."""
        return self.told("the training rows", "the tuned model")

    def told(self, trained: str, model: str) -> str | None:
        """What is to be said of a model and of the rows that it was trained on; None where there is nothing."""
        found = len(self.exact) + len(self.near)
        if not found:
            return None
        first = ", ".join(str(row + 1) for row in (*self.exact, *self.near)[:_SHOWN])
        more = ", …" if found > _SHOWN else ""
        return (
            f"{found} of {self.num_rows} rows stand in {trained}, {len(self.exact)} word for word and {len(self.near)} "
            f"nearly (number {first}{more}): on these {model} may answer from memory."
        )

    def part(self, rows: range) -> Contamination:
        """The same of some of the measured rows, which there count from 0."""
        exact, near = (tuple(rows.index(row) for row in found if row in rows) for found in (self.exact, self.near))
        return replace(self, num_rows=len(rows), exact=exact, near=near)

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON values; rows are counted from 0."""
        return {
            "rows": self.num_rows,
            "training_rows": self.num_trained,
            "exact": list(self.exact),
            "near": list(self.near),
        }


def contamination(measured: Sequence[str], trained: Iterable[str]) -> Contamination:
    """Which of the measured texts stand in the training texts."""
    minhash = MinHash()
    sets = [shingles(words_of(text)) for text in measured]
    places: dict[str, list[int]] = defaultdict(list)
    for row, text in enumerate(measured):
        places[_plain(text)].append(row)
    key_RB = band_keys(minhash.signatures([shingle_array(words_of(text)) for text in measured]))
    buckets: list[dict[int, list[int]]] = [defaultdict(list) for _ in range(key_RB.shape[1])]
    for row, keys in enumerate(key_RB.tolist()):
        for bucket, key in zip(buckets, keys, strict=True):
            bucket[key].append(row)
    exact: set[int] = set()
    near: set[int] = set()
    num_trained = 0
    for texts in _chunks(trained):
        num_trained += len(texts)
        for text in texts:
            exact.update(places.get(_plain(text), ()))
        met_RB = band_keys(minhash.signatures([shingle_array(words_of(text)) for text in texts]))
        for index, row in _meetings(met_RB, key_RB, buckets):
            if row not in near and row not in exact and _jaccard(shingles(words_of(texts[index])), sets[row]) >= NEAR:
                near.add(row)
    return Contamination(len(measured), num_trained, tuple(sorted(exact)), tuple(sorted(near - exact)))


def text_of(record: Record) -> str:
    """All that a record says, as one text."""
    match record:
        case Conversation(messages=messages):
            return "\n".join(message.content for message in messages)
        case Completion(prompt=prompt, completion=completion):
            return f"{prompt}\n{completion}"
        case PlainText(text=text):
            return text
        case Labelled(text=text, pair=pair) | Scored(text=text, pair=pair):
            return text if pair is None else f"{text}\n{pair}"
        case Tagged(words=words):
            return " ".join(words)
        case Choice(question=question, options=options):
            return "\n".join([question, *options])
        case Preference(chosen=chosen, rejected=rejected):
            return _joined((chosen, rejected))
        case Ranking(answers=answers):
            return _joined(answers)
        case Verdict(answered=answered):
            return text_of(answered)
        case Prompt(asked=asked):
            return asked if isinstance(asked, str) else text_of(asked)
        case Similar(anchor=anchor, positive=positive):
            return f"{anchor}\n{positive}"


def _joined(records: Sequence[Record]) -> str:
    return "\n".join(text_of(record) for record in records)


def _meetings(
    met_RB: np.ndarray[Any, np.dtype[np.uint64]],
    key_RB: np.ndarray[Any, np.dtype[np.uint64]],
    buckets: Sequence[dict[int, list[int]]],
) -> set[tuple[int, int]]:
    """Which training rows of a chunk meet which measured rows, as pairs of indices."""
    pairs: set[tuple[int, int]] = set()
    for band, bucket in enumerate(buckets):
        for index in np.flatnonzero(np.isin(met_RB[:, band], key_RB[:, band])).tolist():
            pairs.update((index, row) for row in bucket[int(met_RB[index, band])])
    return pairs


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(texts)
    while chunk := list(islice(rest, _ROWS_OF_CHUNK)):
        yield chunk


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _jaccard(left: set[int], right: set[int]) -> float:
    return len(left & right) / len(left | right) if left and right else 0.0
