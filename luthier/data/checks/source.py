"""Files → rows for the data check: nothing stops at the first fault, and a large file is never held whole.

JSON Lines and tables (CSV, TSV, words with tags) are read line by line, also compressed by gzip; a line that is no row is
noted and passed over. A text file gives its paragraphs. All other kinds are read as training reads them, whole.
Bytes that are not UTF-8 stay in the text as the code points U+DC80 to U+DCFF, where the check of encodings finds them.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

from luthier.data.checks.findings import Notes
from luthier.data.hub import is_hub_name
from luthier.data.reading import Row, kind_of, read_rows
from luthier.data.reading.json_document import ROW_KEYS
from luthier.errors import DataError
from luthier.store.places import expanded
from luthier.types import Origin

Announce = Callable[[str], None]

_LINES = (".jsonl", ".ndjson")
_TABLES = {".csv": ",", ".tsv": "\t"}
_TAGGED = (".conll", ".bio", ".iob")
_TEXTS = (".txt", ".text", ".md")
_LONGEST_CELL = 1 << 30


def stream_rows(source: str | tuple[str, ...], announce: Announce, notes: Notes) -> Iterator[Row]:
    """The rows of a file, of several, or of a hub data set; lines that are no rows are noted as findings.

    Raises: NotFound, NetworkError; DataError for a file that cannot be read at all, such as a pickle.
    """
    for name in (source,) if isinstance(source, str) else source:
        yield from _rows_of(name, announce, notes)


def _rows_of(name: str, announce: Announce, notes: Notes) -> Iterator[Row]:
    path = expanded(name)
    ending = path.with_suffix("").suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()
    if is_hub_name(name) or not path.is_file():
        yield from read_rows(name, announce)
    elif ending in _LINES:
        with _opened(path) as lines:
            yield from _json_lines(lines, name, notes)
    elif ending in _TABLES or (ending in _TEXTS and _is_table(path)):
        with _opened(path) as lines:
            yield from _table(lines, _delimiter(path, ending), name, notes)
    elif ending in _TAGGED:
        with _opened(path) as lines:
            yield from _tagged(lines, name, notes)
    elif ending in _TEXTS:
        with _opened(path) as lines:
            yield from _paragraphs(lines, name)
    elif ending == ".json":
        yield from _json(path, name, announce, notes)
    else:
        yield from read_rows(name, announce)


def _opened(path: Path) -> BinaryIO | gzip.GzipFile:
    if path.suffix.lower() == ".gz":
        return gzip.open(path)
    return path.open("rb")


def _text(data: bytes, number: int = 2) -> str:
    """A line as text; the mark that may begin a file is no part of its first line."""
    text = data.decode("utf-8", "surrogateescape")
    return text.removeprefix("\ufeff") if number == 1 else text


# ── JSON ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _json_lines(lines: Iterable[bytes], name: str, notes: Notes) -> Iterator[Row]:
    for number, data in enumerate(lines, start=1):
        text = _text(data, number)
        if not text.strip():
            continue
        origin = Origin(name, number)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            notes.tell("broken-line", "error", origin, None, f"this line is not JSON: {_reason(error)}.", _WHOLE)
            continue
        if isinstance(value, dict):
            yield Row(value, origin)
        else:
            found = f"this line is JSON but not an object: it is {kind_of(value)}."
            notes.tell("broken-line", "error", origin, None, found, _WHOLE)


_WHOLE = "Write one whole JSON object on the line, or leave the line out."


def _reason(error: Exception) -> str:
    return f"{error.msg}, at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _json(path: Path, name: str, announce: Announce, notes: Notes) -> Iterator[Row]:
    """As training reads it; where it refuses, the rows that can be had of the document."""
    try:
        yield from read_rows(name, announce)
        return
    except DataError as error:
        refusal = error
    try:
        value = json.loads(_text(path.read_bytes(), 1))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            with path.open("rb") as lines:
                yield from _json_lines(lines, name, notes)
            return
        raise refusal from None
    except (ValueError, RecursionError):
        raise refusal from None
    elements = _elements(value)
    if elements is None:
        raise refusal
    for number, element in enumerate(elements, start=1):
        if isinstance(element, dict):
            yield Row(element, Origin(name, number))
        else:
            found = f"row {number} is {kind_of(element)}, not an object."
            notes.tell("broken-line", "error", Origin(name, number), None, found, "Write an object, or leave it out.")


def _elements(value: Any) -> list[Any] | None:
    """The rows of a document: an array, one under a known key, or an object whose values are the rows."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        return None
    for key in ROW_KEYS:
        if isinstance(value.get(key), list):
            return list(value[key])
    values = list(value.values())
    return values if len(values) > 1 and all(isinstance(element, dict) for element in values) else None


# ── tables ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _delimiter(path: Path, ending: str) -> str:
    if ending == ".csv":
        with _opened(path) as file:
            first = _text(file.readline(), 1)
        return "," if "," in first else max(",;\t", key=first.count)
    return "\t"


def _is_table(path: Path) -> bool:
    """Whether each of the first lines holds the same number of tabs, at least one."""
    with _opened(path) as file:
        lines = [_text(line) for line, _ in zip(file, range(20), strict=False)]
    tabs = {line.count("\t") for line in lines if line.strip()}
    return len(tabs) == 1 and tabs != {0}


def _table(lines: Iterable[bytes], delimiter: str, name: str, notes: Notes) -> Iterator[Row]:
    records = _records(lines, delimiter, name, notes)
    line, header = next(records, (1, []))
    columns = [column.strip() for column in header]
    if not _is_header(columns):
        records = _put_back((line, header), records)
        columns = [f"column_{number}" for number in range(1, len(header) + 1)]
    for line, cells in records:
        if len(cells) == len(columns):
            yield Row(dict(zip(columns, cells, strict=True)), Origin(name, line))
            continue
        found = f"this row has {len(cells)} cells, but the others have {len(columns)} ({', '.join(columns)})."
        mend = "Put cells that hold a delimiter, a quote or a line break inside double quotes."
        notes.tell("broken-line", "error", Origin(name, line), None, found, mend)


def _put_back(
    record: tuple[int, list[str]], records: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[int, list[str]]]:
    yield record
    yield from records


def _is_header(cells: list[str]) -> bool:
    """Whether a first record names columns: short, each once, no number, and no sentence."""
    return (
        bool(cells)
        and len(set(cells)) == len(cells)
        and all(
            0 < len(cell) <= 40 and not re.fullmatch(r"[\d.,+-]+", cell) and len(cell.split()) <= 4 for cell in cells
        )
        and not any(cell.endswith((".", "?", "!")) for cell in cells)
    )


def _records(lines: Iterable[bytes], delimiter: str, name: str, notes: Notes) -> Iterator[tuple[int, list[str]]]:
    """Each record with the line on which it begins. In a TSV whose cells are not quoted, a quote is a letter."""
    texts = (_text(data, number) for number, data in enumerate(lines, start=1))
    quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    csv.field_size_limit(max(_LONGEST_CELL, csv.field_size_limit()))
    reader = csv.reader(_without_nul(texts), delimiter=delimiter, strict=True, quoting=quoting)
    line = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            found = f"the row that begins here is not sound: {error} (read up to line {reader.line_num})."
            mend = 'Close every double quote, and write a quote inside a quoted cell as "".'
            notes.tell("broken-line", "error", Origin(name, line), None, found, mend)
            line = reader.line_num + 1
            continue
        if cells:
            yield line, cells
        line = reader.line_num + 1


def _without_nul(texts: Iterable[str]) -> Iterator[str]:
    """The csv module of older Pythons stops at a NUL; it comes through as the sign for it, which is found as well."""
    return (text.replace("\0", "\u2400") if "\0" in text else text for text in texts)


def _tagged(lines: Iterable[bytes], name: str, notes: Notes) -> Iterator[Row]:
    """Words with their tags, one a line, sentences parted by blank lines."""
    words: list[str] = []
    tags: list[str] = []
    first = 1
    for number, data in enumerate(lines, start=1):
        text = _text(data, number).rstrip("\r\n")
        cells = text.split("\t") if "\t" in text else text.split()
        if not text.strip():
            if words:
                yield Row({"words": words, "tags": tags}, Origin(name, first))
            words, tags = [], []
        elif len(cells) < 2:
            found = f"this line holds {text[:40]!r} alone, not a word and its tag."
            notes.tell("broken-line", "error", Origin(name, number), None, found, "Write word, tab, tag.")
        else:
            first = first if words else number
            words.append(cells[0])
            tags.append(cells[-1])
    if words:
        yield Row({"words": words, "tags": tags}, Origin(name, first))


def _paragraphs(lines: Iterable[bytes], name: str) -> Iterator[Row]:
    """What stands between blank lines, with the line on which it begins."""
    held: list[str] = []
    first = 1
    for number, data in enumerate(lines, start=1):
        text = _text(data, number)
        if text.strip():
            first = first if held else number
            held.append(text)
        elif held:
            yield Row({"text": "".join(held)}, Origin(name, first))
            held = []
    if held:
        yield Row({"text": "".join(held)}, Origin(name, first))
