"""A row as it stands in its file, and what a value is, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from luthier.errors import DataError
from luthier.types import Origin

Announce = Callable[[str], None]

OnFault = Callable[[DataError], None]
"""Is told of a row that cannot be read, so that reading goes on with the next one."""

MOST_SAMPLED = 1 << 22
"""Characters that a sample of a file's beginning may hold, so that long rows do not fill the memory."""

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One row as it stands in its file: column → value.

    path: where in a JSON document it stands, such as data[3]; empty in files whose lines are rows.
    parts: where the parts of a row that was put together from several stand, by the fields that lead to them.
    """

    values: dict[str, Any]
    origin: Origin
    path: str = ""
    parts: Mapping[str, Origin] = field(default_factory=dict)

    def place_of(self, name: str) -> tuple[Origin, str]:
        """Where a field stands, and what leads to it from there."""
        part = max((part for part in self.parts if name.startswith(f"{part}.")), key=len, default=None)
        return (self.origin, name) if part is None else (self.parts[part], name.removeprefix(f"{part}."))


def kind_of(value: object) -> str:
    """What a value is, in words."""
    return _KINDS.get(type(value), f"of type {type(value).__name__}")


_KINDS: dict[type, str] = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
}


def sampled(items: Iterator[T], num_items: int, size_of: Callable[[T], int]) -> tuple[list[T], Iterator[T]]:
    """The first items, to look at, and then all items, those included.

    An error among the first ends the sample, and is raised when the second gets there: rows before it can be used.
    """
    head: list[T] = []
    failed: DataError | None = None
    size = 0
    try:
        for item in islice(items, num_items):
            head.append(item)
            size += size_of(item)
            if size > MOST_SAMPLED:
                break
    except DataError as error:
        failed = error

    def again() -> Iterator[T]:
        yield from head
        if failed is not None:
            raise failed
        yield from items

    return head, again()
