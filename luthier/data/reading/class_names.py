"""Names of classes from a file `classes.txt` beside a table whose labels are numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.data.reading.content import content_of
from luthier.data.reading.rows import Announce

FILES = ("classes.txt", "labels.txt")
"""Names of files that hold the name of one class a line."""


@dataclass(frozen=True)
class ClassNames:
    """The column of labels, and the name for each number that stands there."""

    column: str
    names: dict[str, str]


def class_names(
    path: Path, columns: Sequence[str], records: Sequence[Sequence[str]], announce: Announce
) -> ClassNames | None:
    """The names for the one column that holds the numbers 1 to K, or 0 to K - 1, of K names in a file beside it.

    announce: is told of names that are used, or why they are not.
    """
    beside = next((path.with_name(name) for name in FILES if path.with_name(name).is_file()), None)
    if beside is None or path.name in FILES:
        return None
    names = [text.strip() for _, text in content_of(beside, str(beside)).lines() if text.strip()]
    firsts = {column: _first_number(records, index, len(names)) for index, column in enumerate(columns)}
    fitting = {column: first for column, first in firsts.items() if first is not None}
    if len(fitting) != 1 or len(set(names)) < max(2, len(names)):
        announce(
            f"{beside.name}, beside it, is not read: no one column holds the numbers of its {len(names)} names "
            "in the first rows."
        )
        return None
    ((column, first),) = fitting.items()
    announce(
        f"The numbers in {column} are replaced by the {len(names)} names in {beside.name}, beside it, from {first}."
    )
    return ClassNames(column, {str(number): name for number, name in enumerate(names, start=first)})


def _first_number(records: Sequence[Sequence[str]], index: int, num_names: int) -> int | None:
    """Where the numbers of a column begin, 0 or 1, if they are those of so many names and both ends are met."""
    cells = {record[index].strip() if index < len(record) else "" for record in records}
    if not all(cell.isascii() and cell.isdecimal() for cell in cells):
        return None
    numbers = {int(cell) for cell in cells}
    for first in (0, 1):
        if numbers and (min(numbers), max(numbers)) == (first, first + num_names - 1):
            return first
    return None
