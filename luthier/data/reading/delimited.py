"""Tables as text: CSV, and columns separated by tabs; with a line that names the columns, or without."""

from __future__ import annotations

import csv
import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import Literal

from luthier.data.reading.class_names import class_names
from luthier.data.reading.content import Content
from luthier.data.reading.header import judge
from luthier.data.reading.rows import Announce, Row, sampled
from luthier.errors import DataError
from luthier.types import Origin

Line = tuple[int, str]
Record = tuple[int, list[str]]
"""The cells of a row, with the line that it begins on."""

Wrapping = Literal["yes", "no", "unknown"]

LONGEST_CELL = 1 << 28
"""Characters of one cell, so that a quote that is never closed does not take in a file larger than the memory."""

_LINES_TO_LOOK_AT = 500
_RECORDS_TO_LOOK_AT = 1000
_RECORDS_AT_ONCE = 256
_MOST_LINES = 2000
"""Lines of one record, where reading goes on after a quote that is never closed."""


def read_csv(content: Content, announce: Announce) -> Iterator[Row]:
    """The rows of a table separated by commas, or by what stands in their place."""
    head, lines = sampled(content.lines(splits_at_cr=True), _LINES_TO_LOOK_AT, lambda line: len(line[1]))
    delimiter = _delimiter([text for _, text in head])
    if delimiter != ",":
        announce(f"{content.name}: columns are taken to be separated by {delimiter!r}, not by commas.")
    return _rows(_quoted_records(lines, delimiter, content), delimiter, content, announce)


def read_tabbed(content: Content, announce: Announce) -> Iterator[Row]:
    """The rows of a table separated by tabs."""
    head, lines = sampled(content.lines(splits_at_cr=True), _LINES_TO_LOOK_AT, lambda line: len(line[1]))
    texts = [text.rstrip("\r\n") for _, text in head if text.rstrip("\r\n")]
    num_tabs, num_even = Counter(text.count("\t") for text in texts).most_common(1)[0] if texts else (0, 0)
    if num_tabs == 0 or (num_even < len(texts) and _are_quoted([text for _, text in head])):
        return _rows(_quoted_records(lines, "\t", content), "\t", content, announce)
    has_escapes = _has_escapes(texts)
    if has_escapes:
        announce(rf"{content.name}: \n, \t and \\ stand for a new line, a tab and a backslash, and are read so.")
    form = _Tabbed(num_tabs + 1, _wrapping([text for text in texts if text.count("\t") == num_tabs]), has_escapes)
    return _rows(form.records(lines, content), "\t", content, announce)


# ── from records to rows ────────────────────────────────────────────────────────────────────────────────────────────


def _rows(records: Iterator[Record], delimiter: str, content: Content, announce: Announce) -> Iterator[Row]:
    head, records = sampled(records, _RECORDS_TO_LOOK_AT, lambda record: sum(map(len, record[1])))
    if not head:
        next(records, None)  # raises what is wrong with the first
        return
    columns, has_header = _columns(head, content.name, announce)
    body = head[1:] if has_header else head
    classes = class_names(content.path, columns, [cells for _, cells in body], announce)
    for line, cells in islice(records, 1 if has_header else 0, None):
        if len(cells) != len(columns):
            content.tell(_uneven(line, cells, columns, has_header, delimiter, content.name))
            continue
        values = dict(zip(columns, cells, strict=True))
        if classes is not None:
            number = values[classes.column].strip()
            if number not in classes.names:
                found = f"{number!r} is none of the numbers {', '.join(classes.names)} that have a name."
                mend = "Correct the number, or complete the file with the names of the classes."
                content.tell(DataError(found, mend, file=content.name, line=line, field=classes.column))
                continue
            values[classes.column] = classes.names[number]
        yield Row(values, Origin(content.name, line))


def _columns(head: Sequence[Record], name: str, announce: Announce) -> tuple[list[str], bool]:
    """The names of the columns, and whether the first record gives them."""
    line, first = head[0]
    judged = judge([cells for _, cells in head])
    numbered = [f"column_{number}" for number in range(1, len(first) + 1)]
    if not judged.is_header:
        doubt = " (which is doubtful)" if judged.is_doubtful else ""
        announce(
            f"{name}: there is no line with the columns' names{doubt}: in the first line, {judged.reason}. "
            f"It is read as a row, and the columns are called {', '.join(numbered)}; write their names above it for others."
        )
        return numbered, False
    columns = [cell.strip() or number for cell, number in zip(first, numbered, strict=True)]
    twice = next((column for column in columns if columns.count(column) > 1), None)
    if twice is not None:
        mend = "The first line must give each column its own name."
        raise DataError(f"the header names the column {twice!r} twice.", mend, file=name, line=line)
    if judged.is_doubtful and len(head) > 1:
        shown = ", ".join(column[:40] for column in columns)
        announce(
            f"{name}: the first line is taken to name the columns ({shown}), which is doubtful: {judged.reason}. "
            "If it is a row, write the columns' names above it."
        )
    return columns, True


def _uneven(
    line: int, cells: Sequence[str], columns: Sequence[str], has_header: bool, delimiter: str, name: str
) -> DataError:
    others = f"the header has {len(columns)} ({', '.join(columns)})" if has_header else f"the first has {len(columns)}"
    return DataError(
        f"this row has {len(cells)} cells, but {others}.",
        f"Put cells that hold {'a tab' if delimiter == chr(9) else repr(delimiter)}, a quote or a line break "
        'inside double quotes, and write a quote inside them as "".',
        file=name,
        line=line,
    )


# ── records with quotes ─────────────────────────────────────────────────────────────────────────────────────────────


def _delimiter(lines: Sequence[str]) -> str:
    """What separates the columns: what stands equally often in nearly every line, outside quotes."""
    texts = [text for text in re.sub('"[^"]*"', "", "".join(lines)).splitlines() if text.strip()]
    if not texts:
        return ","
    for delimiter in ",;\t|":
        number = texts[0].count(delimiter)
        if number and 10 * sum(text.count(delimiter) == number for text in texts) >= 9 * len(texts):
            return delimiter
    return "," if "," in texts[0] else max(",;\t", key=texts[0].count)


def _quoted_records(lines: Iterator[Line], delimiter: str, content: Content) -> Iterator[Record]:
    """Each record that is not a blank line; a quoted cell may span several lines."""
    if content.on_fault is not None:
        yield from _records_despite_faults(lines, delimiter, content)
        return
    name = content.name
    # strict: a quote that is never closed is an error; without it the rest of the file would silently become one cell
    reader = csv.reader((text for _, text in lines), delimiter=delimiter, strict=True)
    line = 1
    failed: DataError | None = None
    num_read = _RECORDS_AT_ONCE
    while num_read == _RECORDS_AT_ONCE and failed is None:
        batch: list[Record] = []
        with _long_cells():
            try:
                for cells in islice(reader, _RECORDS_AT_ONCE):
                    batch.append((line, cells))
                    line = reader.line_num + 1
            except DataError as error:
                failed = error
            except csv.Error as error:
                failed = _unsound(error, line, reader.line_num, name)
                failed.__cause__ = error
        num_read = len(batch)
        yield from (record for record in batch if record[1])
    if failed is not None:
        raise failed


def _records_despite_faults(lines: Iterator[Line], delimiter: str, content: Content) -> Iterator[Record]:
    """The same, going on after a record that is not sound with the line after its first.

    A record over several lines that has not as many cells as the first is not sound: a quote was not closed.
    """
    replayed = _Replayed(lines)
    reader = csv.reader(replayed, delimiter=delimiter, strict=True)
    width: int | None = None
    while True:
        replayed.keep_from_here()
        fault: DataError | None = None
        with _long_cells():
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                fault = _unsound(error, *replayed.span, content.name)
        begin, end = replayed.span
        if fault is None and begin < end and width is not None and len(cells) != width:
            fault = _unsound(csv.Error(f"it has {len(cells)} cells, not {width}"), begin, end, content.name)
        if fault is not None:
            content.tell(fault)
            replayed.go_back()
        elif cells:
            width = width or len(cells)
            yield begin, cells


class _Replayed:
    """The text of lines; those since a mark can be gone back to, but for the first."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self._again: deque[Line] = deque()
        self._kept: list[Line] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if len(self._kept) > _MOST_LINES:
            raise csv.Error(f"a quote is not closed for {_MOST_LINES:,} lines")
        self._kept.append(self._again.popleft() if self._again else next(self._lines))
        return self._kept[-1][1]

    def keep_from_here(self) -> None:
        """Set the mark."""
        self._kept = []

    @property
    def span(self) -> tuple[int, int]:
        """The numbers of the first and the last line since the mark."""
        return self._kept[0][0], self._kept[-1][0]

    def go_back(self) -> None:
        """Give all lines after the first since the mark once more."""
        self._again.extendleft(reversed(self._kept[1:]))


def _unsound(error: csv.Error, line: int, reached: int, name: str) -> DataError:
    return DataError(
        f"the row that begins here is not sound: {error} (read up to line {reached}).",
        'Close every double quote, and write a quote inside a quoted cell as "".',
        file=name,
        line=line,
    )


@contextmanager
def _long_cells() -> Iterator[None]:
    """Lets a cell be long: the csv module's limit is one number for the process, so it is put back."""
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


# ── records of lines ────────────────────────────────────────────────────────────────────────────────────────────────

_WRAPPED = re.compile('"(?:[^"]|"")*"')
_ESCAPE = re.compile(r"\\([\\nrt])")
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}


def _has_escapes(texts: Sequence[str]) -> bool:
    r"""Whether \n stands for a new line: it occurs, and no backslash stands before anything but n, r, t or another."""
    found = Counter(match[1] for text in texts for match in re.finditer(r"\\(.?)", text))
    return found["n"] > 0 and set(found) <= set(_ESCAPED)


def _are_quoted(lines: Sequence[str]) -> bool:
    """Whether these lines, of unequal numbers of tabs, are sound records with tabs or line breaks inside quotes."""
    reader = csv.reader(iter(lines), delimiter="\t", strict=True)
    widths = set()
    num_sound = 0
    try:
        with _long_cells():
            for cells in reader:
                widths.add(len(cells))
                num_sound = reader.line_num
    except csv.Error:
        if 5 * num_sound < 4 * len(lines):  # no record that the last line merely cuts
            return False
    return len(widths - {0}) == 1


def _wrapping(texts: Sequence[str]) -> Wrapping:
    """Whether quotes wrap cells: all that begin with one are wrapped (yes), some are not (no), or none begins so."""
    are_wrapped = {
        _WRAPPED.fullmatch(cell) is not None
        for text in texts
        if '"' in text
        for cell in text.split("\t")
        if cell.startswith('"')
    }
    return "unknown" if not are_wrapped else "yes" if are_wrapped == {True} else "no"


@dataclass(frozen=True)
class _Tabbed:
    """A table with a row a line, in which a quote is a sign like others, unless it wraps cells.

    width: cells of a row. wrapping: whether cells in quotes lose them. has_escapes: whether backslashes are read.
    """

    width: int
    wrapping: Wrapping
    has_escapes: bool

    def records(self, lines: Iterator[Line], content: Content) -> Iterator[Record]:
        """Each record that is not an empty line."""
        for number, text in lines:
            line = text.rstrip("\r\n")
            if not line:
                continue
            cells = line.split("\t")
            if '"' in line and self.wrapping != "no":
                if self._goes_on(cells):
                    try:
                        cells = _quoted_record(chain([text], (more for _, more in lines)), number, content.name)
                    except DataError as error:
                        content.tell(error)
                        continue
                else:
                    cells = [_unwrapped(cell) for cell in cells]
            if self.has_escapes and "\\" in line:
                cells = [_ESCAPE.sub(lambda match: _ESCAPED[match[1]], cell) for cell in cells]
            yield number, cells

    def _goes_on(self, cells: Sequence[str]) -> bool:
        """Whether a quoted cell holds tabs, or goes on in the next line."""
        if len(cells) != self.width:
            return any(cell.startswith('"') for cell in cells)
        return self.wrapping == "yes" and cells[-1].startswith('"') and _WRAPPED.fullmatch(cells[-1]) is None


def _unwrapped(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if _WRAPPED.fullmatch(cell) else cell


def _quoted_record(lines: Iterator[str], number: int, name: str) -> list[str]:
    """One record whose quoted cells hold tabs or line breaks; takes as many lines as it has."""
    reader = csv.reader(lines, delimiter="\t", strict=True)
    try:
        with _long_cells():
            return next(reader)
    except csv.Error as error:
        raise _unsound(error, number, number + reader.line_num - 1, name) from error
