"""What is asked of every row at once: numbers of tokens and of targets, and what the gate looks for, a line of numbers a row.

They are counted from the examples, or were counted when these became tokens, by the same functions; so a set that is kept on
the disk is judged without being read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from luthier.data.sequences import Chosen, Joined, Lazy, Mapped
from luthier.data.split import Keys, prompt_key
from luthier.types import (
    Choice,
    Completion,
    Conversation,
    Example,
    IntArray,
    Labelled,
    Layout,
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

T = TypeVar("T")
Table = NDArray[np.void]
Digests = NDArray[np.uint8]

FACTS = np.dtype(
    [
        ("tokens", "<i8"),  # all that is computed
        ("real", "<i8"),  # of these, no placeholders
        ("padded", "<i8"),  # where parts are padded to the longest
        ("source", "<i8"),  # tokens of it
        ("parts", "<i8"),  # how many
        ("longest", "<i8"),  # positions that the model needs at once
        ("learned", "<i8"),  # targets
        ("highest", "<i8"),  # token; -1 where there is none
        ("first", "<i8"),  # token of what is read first; -1 where there is none
        ("second", "<i8"),
        ("teaches", "?"),  # whether a target has a weight
    ]
)

KINDS: tuple[type[Record], ...] = (
    Conversation, Completion, PlainText, Labelled, Scored, Tagged, Choice, Similar, Preference, Verdict, Prompt, Ranking,
)  # fmt: skip
"""The classes of records; a record's kind is its place here."""

RECORD_FACTS = np.dtype([("kind", "i1"), ("extras", "?"), ("piece", "?"), ("key", "S64")])


@runtime_checkable
class Counted(Protocol):
    """Rows, or records, whose facts were counted when they were made."""

    @property
    def facts_R(self) -> Table: ...


@runtime_checkable
class Hashed(Protocol):
    """Rows whose digests were taken when they were made."""

    @property
    def digests_R(self) -> Digests: ...


class CountedOnce(Lazy[Example]):
    """Examples that are made anew each time they are asked for, and whose facts are counted but once."""

    def __init__(self, rows: Sequence[Example]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def item(self, index: int) -> Example:
        """The example made anew."""
        return self.rows[index]

    @cached_property
    def facts_R(self) -> Table:
        """The facts of the examples."""
        return facts_of(self.rows)


def remade(make: Callable[[Any], Example], rows: Sequence[Any]) -> Sequence[Example]:
    """What a function makes of each row: in memory where the rows are, else made anew each time, but counted once.

    make: gives the same for the same row each time.
    """
    return tuple(make(row) for row in rows) if isinstance(rows, tuple) else CountedOnce(Mapped(make, rows))


def facts_of(rows: Sequence[Example]) -> Table:
    """The facts of examples, shape (R,), of dtype `FACTS`."""
    return _counted(rows, lambda each: np.array([fact_of(row) for row in each], dtype=FACTS))


def digests_of(rows: Sequence[Example]) -> Digests:
    """The digest of each example, shape (R, 32)."""
    if isinstance(rows, Hashed):
        return rows.digests_R
    if isinstance(rows, Chosen):
        return digests_of(rows.rows)[rows.at_R]
    if isinstance(rows, Joined):
        return np.concatenate([digests_of(part) for part in rows.parts])
    return np.frombuffer(b"".join(map(digest_of, rows)), dtype=np.uint8).reshape(-1, 32)


def digest_of(example: Example) -> bytes:
    """The SHA-256 of all that training and evaluation take from an example: tokens, targets, weights."""
    arrays: list[NDArray[Any]] = [part.tokens_T for part in example.parts]
    arrays += [example.source_N, example.token_N, example.weight_N, example.sample_N]
    arrays += [array for array in (example.source_S, example.types_P, example.value_N) if array is not None]
    parents = ",".join(f"{part.parent} {part.causal}" for part in example.parts)
    lengths = np.array([len(array) for array in arrays], dtype="<i8")
    return hashlib.sha256(b"".join([parents.encode(), lengths.tobytes(), *(a.tobytes() for a in arrays)])).digest()


def keys_of(records: Sequence[Record]) -> Keys:
    """The hashes of records' prompts, shape (R,)."""
    return _counted(records, _keys_alone)["key"]


def pieces_of(records: Sequence[Record]) -> NDArray[np.bool_]:
    """Whether each record is a piece of a longer text, shape (R,)."""
    is_piece_R: NDArray[np.bool_] = _counted(records, _kinds_alone)["piece"]
    return is_piece_R


def kinds_of(records: Sequence[Record]) -> tuple[IntArray, NDArray[np.bool_]]:
    """Which of `KINDS` each record is, and whether it has extras, each shape (R,)."""
    facts_R = _counted(records, _kinds_alone)
    return facts_R["kind"].astype(np.int64), facts_R["extras"]


def _counted(rows: Sequence[T], count: Callable[[Sequence[T]], Table]) -> Table:
    if isinstance(rows, Counted):
        return rows.facts_R
    if isinstance(rows, Chosen):
        return _counted(rows.rows, count)[rows.at_R]
    if isinstance(rows, Joined):
        return np.concatenate([_counted(part, count) for part in rows.parts])
    return count(rows)


def _keys_alone(records: Sequence[Record]) -> Table:
    return np.array([(0, False, False, prompt_key(record).encode()) for record in records], dtype=RECORD_FACTS)


def _kinds_alone(records: Sequence[Record]) -> Table:
    return np.array([(*_kind_of(record), b"") for record in records], dtype=RECORD_FACTS)


def _kind_of(record: Record) -> tuple[int, bool, bool]:
    is_piece = isinstance(record, PlainText) and bool(record.part_of)
    return KINDS.index(type(record)), has_extras(record), is_piece


def fact_of(example: Example) -> tuple[int | bool, ...]:
    """The facts of one example, in the order of `FACTS`."""
    arrays = [part.tokens_T for part in example.parts]
    read = arrays if example.source_S is None else [*arrays, example.source_S]
    begins: IntArray = (
        example.source_S if example.source_S is not None else arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    )[:2]
    first, second = [*map(int, begins), -1, -1][:2]
    return (
        example.num_tokens,
        example.num_real_tokens,
        len(arrays) * max(len(array) for array in arrays) + example.num_source_tokens,
        example.num_source_tokens,
        len(arrays),
        example.longest_stream,
        example.num_learned,
        max(int(array.max(initial=-1)) for array in read),
        first,
        second,
        bool((example.weight_N > 0).any()),
    )


def record_fact_of(record: Record) -> tuple[int, bool, bool, bytes]:
    """The facts of one record, in the order of `RECORD_FACTS`."""
    return *_kind_of(record), prompt_key(record).encode()


def has_extras(record: Record) -> bool:
    """Whether a chat offers tools, or has messages with more than a role and a content."""
    chat = record.asked if isinstance(record, Prompt) else record
    return isinstance(chat, Conversation) and (bool(chat.tools) or any(m.extra for m in chat.messages))


def laid_out(facts_R: Table, layout: Layout) -> IntArray:
    """Tokens that each example takes in a micro-batch: in padded rows its parts are of equal length."""
    tokens_R: IntArray = facts_R["tokens" if layout == "packed" else "padded"]
    return tokens_R
