"""A look at rows as a table, and the checks that take typed values out of a row or say what is wrong with them."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from luthier.data.reading import Row, kind_of
from luthier.data.settings import NO_WISHES, FormatName, Wishes
from luthier.errors import DataError
from luthier.types import Gives, Record

ROWS_TO_RECOGNISE = 200
"""So many rows show what a column holds."""

ROWS_OF_FORM = 50_000
"""So many rows tell the form of all, where a form asks more of a column than what it holds."""

_NUMBERED = re.compile(r"column_\d+")


@dataclass(frozen=True)
class Table:
    """Rows, their columns with the kind of value that is most common in the first rows, and the columns most rows have.

    wishes: which reading a recipe wishes where there are several.
    """

    rows: Sequence[Row]
    kinds: Mapping[str, str]
    usual: Collection[str]
    wishes: Wishes = NO_WISHES

    @property
    def first(self) -> Sequence[Row]:
        """The rows that a form is recognised by."""
        return self.rows[:ROWS_TO_RECOGNISE]

    def column(self, name: str) -> str | None:
        """The usual column of this name: spelled so, or else with other capitals."""
        if name in self.usual:
            return name
        return next((column for column in self.usual if column.lower() == name.lower()), None)

    def columns(self, names: Collection[str]) -> list[str]:
        """The usual columns among these names."""
        return [column for name in names if (column := self.column(name)) is not None]

    def named(self, names: Collection[str], kinds: Collection[str] = ("text",)) -> str | None:
        """The first usual column among these names whose values are of such a kind."""
        return next((column for column in self.columns(names) if self.kinds[column] in kinds), None)

    def texts(self, names: Collection[str]) -> str | None:
        """The first usual column among these names that holds texts, or lists of texts."""
        return next((column for column in self.columns(names) if self.mostly(column, _is_texts)), None)

    def values(self, column: str) -> Iterator[Any]:
        """What the first rows have in a column, as far as they have anything."""
        return (value for row in self.first if (value := row.values.get(column)) is not None)

    def mostly(self, column: str, is_so: Callable[[Any], Any]) -> bool:
        """Whether it is so for at least half of what the first rows have in a column."""
        found = [bool(is_so(value)) for value in self.values(column)]
        return bool(found) and 2 * sum(found) >= len(found)

    @property
    def is_headerless(self) -> bool:
        """Whether the columns are only numbered, as those of a file without a header are."""
        return bool(self.usual) and all(_NUMBERED.fullmatch(column) for column in self.usual)


def _is_texts(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(part, str) for part in value))


@dataclass(frozen=True)
class Recognition:
    """That rows have a certain form: why, which columns it reads, what a row becomes, and what a user should know.

    to_records: the records that a row holds: a tree of messages holds several threads, or no pair of answers to compare.
    """

    reason: str
    reads: frozenset[str]
    to_records: Callable[[Row], Sequence[Record]]
    notes: tuple[str, ...] = ()

    def remade(self, remake: Callable[[Record], Record | None], **said: Any) -> Recognition:
        """The same rows read as what is made of their records; None: nothing. said: another reason or other notes."""
        read = self.to_records

        def to_records(row: Row) -> Sequence[Record]:
            return tuple(made for record in read(row) if (made := remake(record)) is not None)

        return replace(self, to_records=to_records, **said)


Recognise = Callable[[Table], Recognition | None]
"""How rows are read as some form, if they have it."""


@dataclass(frozen=True)
class FurtherForm:
    """Another form that a file here holds, beside the one that is the file itself."""

    NAME: FormatName
    GIVES: Gives
    COLUMNS: str
    recognise: Recognise


def one(to_record: Callable[..., Record], **columns: Any) -> Callable[[Row], Sequence[Record]]:
    """For forms whose rows hold one record each: `to_record` with its columns settled."""
    return lambda row: (to_record(row, **columns),)


def tabulate(rows: Sequence[Row], wishes: Wishes = NO_WISHES) -> Table:
    """The rows with their columns. A column is usual if it is in at least half of the first rows and not always null."""
    first = rows[:ROWS_TO_RECOGNISE]
    present = Counter(column for row in first for column in row.values)
    columns = dict.fromkeys(column for row in rows for column in row.values)
    kinds = {column: _usual_kind(first, column) for column in columns}
    usual = [column for column in columns if 2 * present[column] >= len(first) and kinds[column] != "null"]
    return Table(rows, kinds, tuple(usual), wishes)


def _usual_kind(rows: Sequence[Row], column: str) -> str:
    kinds = Counter(kind_of(row.values[column]) for row in rows if row.values.get(column) is not None)
    return kinds.most_common(1)[0][0] if kinds else "null"


# ── faults and typed values ─────────────────────────────────────────────────────────────────────────────────────────


def fault(row: Row, field: str, found: str, mend: str) -> DataError:
    """What is wrong with one field of a row."""
    origin, field = row.place_of(field)
    return DataError(found, mend, file=origin.file, line=origin.line, field=field)


def required(row: Row, within: Mapping[str, Any], key: str, field: str) -> Any:
    """The value under a key of a row, or of an object inside it. `field` is the whole path to it."""
    if key not in within:
        keys = ", ".join(repr(other) for other in list(within)[:8]) or "no keys"
        near = difflib.get_close_matches(key, [str(other) for other in within], n=1)
        mend = f"Did you mean {key!r} where {near[0]!r} is written?" if near else f"Add {key!r}, or leave this row out."
        raise fault(row, field, f"{key!r} is missing; there is {keys}.", mend)
    return within[key]


def as_text(row: Row, field: str, value: Any) -> str:
    """The value, if it is text, with or without anything in it."""
    if not isinstance(value, str):
        raise fault(
            row, field, f"expected text, found {kind_of(value)}.", "Write it as a string, or leave this row out."
        )
    return value


def as_filled_text(row: Row, field: str, value: Any, what: str) -> str:
    """The value, if it is text that is not blank. `what` names it, as in "the answer"."""
    text = as_text(row, field, value)
    if not text.strip():
        raise fault(row, field, f"{what} is empty.", "Fill it in, or leave this row out.")
    return text


def as_joined_text(row: Row, field: str, value: Any, what: str, joint: str = "\n") -> str:
    """The value, if it is text that is not blank, or a list of texts, which are joined."""
    if isinstance(value, list):
        value = joint.join(as_text(row, f"{field}[{index}]", part) for index, part in enumerate(value))
    return as_filled_text(row, field, value, what)


def as_number(row: Row, field: str, value: Any) -> float:
    """The finite number that the value is, or spells, as CSV cells do."""
    if not is_number(value):
        said = (
            f"{value[:40]!r}" if isinstance(value, str) else str(value) if isinstance(value, float) else kind_of(value)
        )
        raise fault(row, field, f"expected a number, found {said}.", "Write a number, or leave this row out.")
    return float(value)


def as_weight(row: Row, field: str, value: Any) -> float:
    """The value, if it is a finite number that is not negative, or spells one; true and false are 1 and 0."""
    number = float(value) if isinstance(value, bool) else as_number(row, field, value)
    if number < 0:
        found = f"the weight is {number:g}, and less than nothing cannot be learned."
        raise fault(row, field, found, "Write 1 for what counts as usual, 0 for what is not learned.")
    return number


def is_number(value: object) -> bool:
    """Whether a value is a finite number, or spells one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return False
    try:
        return math.isfinite(float(value))
    except (ValueError, OverflowError):
        return False


def as_list(row: Row, field: str, value: Any, of: str) -> list[Any]:
    """The value, if it is a list, also one written as JSON in a string, as CSV cells hold it. `of` says of what."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            found = f"expected a list of {of}, found text that is not JSON: {error}."
            raise fault(row, field, found, "Write the list itself, or as JSON in a string.") from error
    if not isinstance(value, list):
        raise fault(row, field, f"expected a list of {of}, found {kind_of(value)}.", f"Write a list of {of} there.")
    return value


def as_object(row: Row, field: str, value: Any, such_as: str) -> dict[str, Any]:
    """The value, if it is an object."""
    if not isinstance(value, dict):
        raise fault(row, field, f"expected an object, found {kind_of(value)}.", f"Write an object such as {such_as}.")
    return value
