"""Rows that are not held in memory: some of a sequence, several one after another, and what a function makes of each."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

import numpy as np

from luthier.types import IntArray

T = TypeVar("T")


class Lazy(Sequence[T]):
    """A sequence whose items are made when they are asked for; a slice of it is one too."""

    @abstractmethod
    def item(self, index: int) -> T:
        """The item at an index from 0 to the length less one."""

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...

    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return Chosen(self, np.arange(*index.indices(len(self)), dtype=np.int64))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.item(index % len(self))


class Chosen(Lazy[T]):
    """The items of a sequence at some places, in their order."""

    def __init__(self, rows: Sequence[T], at_R: IntArray) -> None:
        self.rows = rows
        self.at_R = at_R

    def __len__(self) -> int:
        return len(self.at_R)

    def item(self, index: int) -> T:
        """The item at the place of that number."""
        return self.rows[int(self.at_R[index])]


class Joined(Lazy[T]):
    """Several sequences, one after another."""

    def __init__(self, parts: Sequence[Sequence[T]]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def item(self, index: int) -> T:
        """The item of the part that the index falls into."""
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.parts[part][index - int(self.starts[part])]


class Mapped(Lazy[T]):
    """What a function makes of each item of a sequence, made anew each time."""

    def __init__(self, make: Callable[[Any], T], rows: Sequence[Any]) -> None:
        self.make = make
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def item(self, index: int) -> T:
        """What is made of the item there."""
        return self.make(self.rows[index])


def taken(rows: Sequence[T], at: Sequence[int]) -> Sequence[T]:
    """The rows at some places; in memory where the rows are."""
    return tuple(rows[i] for i in at) if isinstance(rows, tuple) else Chosen(rows, np.asarray(at, dtype=np.int64))


def joined(parts: Sequence[Sequence[T]]) -> Sequence[T]:
    """Several sequences as one; in memory where all of them are."""
    if len(parts) == 1:
        return parts[0]
    if all(isinstance(part, tuple) for part in parts):
        return tuple(row for part in parts for row in part)
    return Joined(parts)
