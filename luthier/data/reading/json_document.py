"""A JSON document: the one kind of file that is read whole before its first row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from luthier.data.reading.content import Content
from luthier.data.reading.jsonl import is_jsonl, may_hold_surrogates, read_jsonl, whole
from luthier.data.reading.rows import Announce, Row, kind_of
from luthier.errors import DataError
from luthier.types import Origin

ROW_KEYS = ("data", "rows", "examples", "train")
"""Where a JSON object may hold its list of rows."""

_SAVE_ROWS = "Save the rows as JSONL, CSV or Parquet and give that file."


def read_json(content: Content, announce: Announce) -> Iterator[Row]:
    """The rows of the document; of JSONL by another name, its lines."""
    if is_jsonl(content.beginning):
        yield from _as_jsonl(content, announce)
        return
    with content.open() as stream:
        text = content.decoded(stream.read())
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            yield from _as_jsonl(content, announce)
            return
        found = f"this is not JSON: {error.msg}, at column {error.colno}." if text.strip() else "the file is empty."
        mend = "The file must be one array of objects: [{…}, {…}]. For one object a line, name it .jsonl."
        raise DataError(found, mend, file=content.name, line=error.lineno) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"this cannot be read as JSON: {error}.", _SAVE_ROWS, file=content.name) from error
    is_suspect = content.on_fault is None and may_hold_surrogates(text)
    key, elements = _elements(value, content.name, announce)
    for number, element in enumerate(elements, start=1):
        try:
            row = _row(element, content.name, number, f"{key}[{number - 1}]")
        except DataError as error:
            content.tell(error)
        else:
            yield whole(row) if is_suspect else row


def _as_jsonl(content: Content, announce: Announce) -> Iterator[Row]:
    announce(f"{content.name} holds one JSON object after another, so it is read as JSONL.")
    return read_jsonl(content, announce)


def _row(element: object, name: str, number: int, path: str) -> Row:
    if not isinstance(element, dict):
        mend = 'Each element of the array must be an object, such as {"prompt": "…", "completion": "…"}.'
        raise DataError(f"row {number} is {kind_of(element)}, not an object.", mend, file=name, line=number)
    return Row(element, Origin(name, number), path)


# ── where the rows are ──────────────────────────────────────────────────────────────────────────────────────────────


def _elements(value: object, name: str, announce: Announce) -> tuple[str, list[Any]]:
    """The list of rows in a document, after the key that it stands under."""
    if isinstance(value, list):
        return "", value
    mend = (
        f"Give an array of objects, an object with one such array under {', '.join(ROW_KEYS)}, "
        "or an object that holds each row under its id."
    )
    if not isinstance(value, dict):
        raise DataError(f"the document is {kind_of(value)}, not an array of objects.", mend, file=name)
    lists = _lists_of_rows(value)
    if len(lists) == 1:
        others = [repr(key) for key in value if key != lists[0]]
        if others:
            announce(f"{name}: the rows are those under {lists[0]!r}; {', '.join(others[:8])} beside it is not read.")
        return lists[0], value[lists[0]]
    if not lists and _is_by_column(value):
        found = "the document holds a column under each key, not a row."
        raise DataError(found, "Save it by rows; pandas does so with orient='records'.", file=name)
    if not lists and _is_by_id(value):
        return "", _rows_by_id(value, name, announce)
    keys = ", ".join(repr(key) for key in islice(value, 8))
    what = f"lists under {' and '.join(map(str, lists))}" if lists else "no list under any of those names"
    raise DataError(f"the document is an object with the keys {keys}: {what}.", mend, file=name)


def _lists_of_rows(value: dict[str, Any]) -> list[str]:
    """The keys that rows stand under: the known ones, or else one that holds objects beside nothing but plain values."""
    known = [key for key in ROW_KEYS if isinstance(value.get(key), list)]
    structured = [key for key, held in value.items() if isinstance(held, list | dict)]
    if known or len(structured) != 1:
        return known
    held = value[structured[0]]
    return structured if isinstance(held, list) and held and all(isinstance(row, dict) for row in held) else []


def _is_by_column(value: dict[str, Any]) -> bool:
    """Whether this is a table by columns, as pandas writes it: each a list, or an object of the rows' numbers."""
    columns = list(value.values())
    if len(columns) > 1 and all(isinstance(column, list) for column in columns):
        return len({len(column) for column in columns}) == 1
    numbered = all(isinstance(column, dict) and "0" in column for column in columns)
    return bool(columns) and numbered and all(list(column) == list(columns[0]) for column in columns)


def _is_by_id(value: dict[str, Any]) -> bool:
    """Whether each value is an object, and all have a key in common: rows, each under its id."""
    rows = list(value.values())
    return len(rows) > 1 and all(isinstance(row, dict) for row in rows) and bool(set.intersection(*map(set, rows)))


def _rows_by_id(value: dict[str, Any], name: str, announce: Announce) -> list[Any]:
    if any("id" in row for row in value.values()):
        announce(f"{name}: an object that holds a row under each key; the rows have an id, so the keys are not read.")
        return list(value.values())
    announce(f"{name}: an object that holds a row under each key; the key becomes the column id.")
    return [{"id": key, **row} for key, row in value.items()]
