"""Files → rows: each row a dictionary of values, with the file and line that it came from.

    .jsonl .ndjson        one JSON object a line; blank lines are passed over
    .json                 an array of objects, or an object that holds one under data, rows, examples or train
    .csv .tsv             a header line, then one row a record
    .parquet .pq          one row a row
    .txt .text .md        the whole file as one row with the column `text`
    owner/name            the split `train` of a data set on the Hugging Face hub

A name with another ending is told by its content. Files that can run code when opened (pickles) are refused unread.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from luthier.data.hub import fetch_values, is_hub_name
from luthier.errors import DataError, NotFound
from luthier.store.places import expanded
from luthier.types import Origin

Announce = Callable[[str], None]

ROW_KEYS = ("data", "rows", "examples", "train")
"""Where a JSON object may hold its list of rows."""

READABLE = "JSONL (.jsonl), JSON (.json), CSV (.csv, .tsv), Parquet (.parquet) or plain text (.txt)"

_NO_PICKLE = "Opening a pickle can run code, so it is never read; save the rows as JSONL, CSV or Parquet."
_UNPACK = "Unpack it and give the file that was inside."
_SAVE_ROWS = "Save the rows as JSONL, CSV or Parquet and give that file."

_REFUSED_ENDINGS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".npy", ".npz"),
        ("this is a pickle, or a file that may hold one.", _NO_PICKLE),
    ),
    **dict.fromkeys((".gz", ".zst", ".bz2", ".xz", ".zip", ".tar", ".tgz"), ("this file is compressed.", _UNPACK)),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), ("this is a spreadsheet.", "Save the sheet as CSV and give that file.")),
    **dict.fromkeys((".safetensors", ".gguf"), ("this file holds a model's weights, not rows.", _SAVE_ROWS)),
    **dict.fromkeys((".arrow", ".feather"), ("this is an Arrow file.", "Save it as Parquet and give that file.")),
}

_REFUSED_BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    *((bytes([0x80, protocol]), "this file begins as a pickle does.", _NO_PICKLE) for protocol in range(2, 6)),
    (b"\x93NUMPY", "this is a NumPy file, which may hold a pickle.", _NO_PICKLE),
    (b"PK\x03\x04", "this is a zip archive (spreadsheets and torch files are such archives too).", _SAVE_ROWS),
    (b"\x1f\x8b", "this file is compressed (gzip).", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "this file is compressed (zstd).", _UNPACK),
)


@dataclass(frozen=True)
class Row:
    """One row as it stands in its file: column → value."""

    values: dict[str, Any]
    origin: Origin


def read_rows(source: str | tuple[str, ...], announce: Announce, max_rows: int | None = None) -> list[Row]:
    """The rows of a file, of several files one after another, or of a hub data set; at least one.

    Args:
        announce: is told what a user would not expect, such as which part of a JSON file is taken.
        max_rows: stop after so many rows; what comes later is not looked at.

    Raises: DataError for content that cannot be used, NotFound for a file or hub name that does not exist, NetworkError
    where the hub cannot be reached.
    """
    sources = (source,) if isinstance(source, str) else source
    if not sources:
        raise DataError("the list of data files is empty.", "Give at least one file.")
    rows: list[Row] = []
    for name in sources:
        limit = None if max_rows is None else max_rows - len(rows)
        if limit == 0:
            break
        if is_hub_name(name):
            fetched = fetch_values(name, announce, limit)
            found = [Row(values, Origin(name, number)) for number, values in enumerate(fetched, start=1)]
        else:
            found = _read_local(name, announce, limit)
        if not found:
            raise DataError("there are no rows in it.", "Give a file that holds at least one row.", file=name)
        rows += found
    return rows


# ── local files ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _read_local(name: str, announce: Announce, limit: int | None) -> list[Row]:
    path = expanded(name)
    if path.is_dir():
        inside = sorted(child.name for child in path.iterdir() if child.is_file())[:5]
        held = f" It holds {', '.join(inside)}." if inside else ""
        raise DataError(f"this is a folder, not a file.{held}", "Give the data file itself.", file=name)
    if not path.exists():
        raise _missing(path, name)
    if not path.is_file():
        raise DataError("this is a pipe or a device, not a file.", "Write the rows to a file and give that.", file=name)
    if path.suffix.lower() in _REFUSED_ENDINGS:
        raise DataError(*_REFUSED_ENDINGS[path.suffix.lower()], file=name)
    try:
        return _reader_of(path, name)(path, name, announce, limit)
    except OSError as error:
        found = f"it cannot be read: {error.strerror or error}."
        raise DataError(found, "Check the file's permissions.", file=name) from error


def _missing(path: Path, name: str) -> NotFound:
    folder = path.parent
    if not folder.is_dir():
        return NotFound(f"the folder {folder} does not exist.", "Check the path.", file=name)
    near = difflib.get_close_matches(path.name, [child.name for child in folder.iterdir()], n=3, cutoff=0.5)
    mend = f"Did you mean {' or '.join(str(folder / other) for other in near)}?" if near else "Check the path."
    return NotFound("there is no such file.", mend, file=name)


Reader = Callable[[Path, str, Announce, int | None], list[Row]]


def _reader_of(path: Path, name: str) -> Reader:
    """The function that reads this kind of file, by its ending, or else by how it begins."""
    with path.open("rb") as file:
        beginning = file.read(4096)
    if not beginning:
        raise DataError("the file is empty.", "Give a file that holds at least one row.", file=name)
    for mark, found, mend in _REFUSED_BEGINNINGS:
        if beginning.startswith(mark):
            raise DataError(found, mend, file=name)
    reader = _READERS.get(path.suffix.lower())
    if reader is not None:
        return reader
    text = beginning.removeprefix(b"\xef\xbb\xbf").lstrip()
    if beginning.startswith(b"PAR1"):
        return _read_parquet
    if text.startswith((b"{", b"[")):
        return _read_json  # which also takes JSONL
    what = "it is not text, and " if b"\0" in beginning else ""
    raise DataError(
        f"{what}neither its name nor its content tells what kind of file it is.",
        f"Luthier reads {READABLE}; give the file the ending that fits its content.",
        file=name,
    )


def _read_text(path: Path, name: str, announce: Announce, limit: int | None) -> list[Row]:
    text = _decoded(path.read_bytes(), name)
    return [Row({"text": text}, Origin(name, 1))] if text.strip() else []


def _decoded(data: bytes, name: str, line: int = 1) -> str:
    """Bytes as text, without a byte order mark; `line` is the number of the first line in them."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        column = error.start - (before.rfind(b"\n") + 1) + 1
        utf16 = " (it looks like UTF-16)" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else ""
        raise DataError(
            f"the text is not UTF-8{utf16}: byte 0x{data[error.start]:02X}, the {column}. of its line, is not valid there.",
            "Save the file with the encoding UTF-8.",
            file=name,
            line=line + before.count(b"\n"),
        ) from error


# ── JSONL and JSON ──────────────────────────────────────────────────────────────────────────────────────────────────


def _read_jsonl(path: Path, name: str, announce: Announce, limit: int | None) -> list[Row]:
    with path.open("rb") as lines:  # bytes, because only \n ends a line here; text may hold other line separators
        return list(islice(_jsonl_rows(lines, name), limit))


def _jsonl_rows(lines: Iterable[bytes], name: str) -> Iterator[Row]:
    for number, data in enumerate(lines, start=1):
        text = _decoded(data, name, number)
        if not text.strip():
            continue
        mend = 'Each line must be one whole JSON object, such as {"prompt": "…", "completion": "…"}.'
        if number == 1 and text.lstrip().startswith("["):
            mend += " If the file is one JSON array, name it .json."
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            found = f"this line is not JSON: {error.msg}, at column {error.colno}."
            raise DataError(found, mend, file=name, line=number) from error
        except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of open brackets
            raise DataError(f"this line cannot be read as JSON: {error}.", mend, file=name, line=number) from error
        if not isinstance(value, dict):
            found = f"this line is JSON but not an object: it is {kind_of(value)}."
            raise DataError(found, mend, file=name, line=number)
        row = Row(value, Origin(name, number))
        yield _whole(row) if _SURROGATE.search(text) else row


def _read_json(path: Path, name: str, announce: Announce, limit: int | None) -> list[Row]:
    data = path.read_bytes()
    text = _decoded(data, name)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            announce(f"{name} holds one JSON object after another, so it is read as JSONL.")
            return list(islice(_jsonl_rows(io.BytesIO(data), name), limit))
        found = f"this is not JSON: {error.msg}, at column {error.colno}." if text.strip() else "the file is empty."
        mend = "The file must be one array of objects: [{…}, {…}]. For one object a line, name it .jsonl."
        raise DataError(found, mend, file=name, line=error.lineno) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"this cannot be read as JSON: {error}.", _SAVE_ROWS, file=name) from error
    rows = [
        _row(element, name, number) for number, element in enumerate(_array(value, name, announce)[:limit], start=1)
    ]
    return [_whole(row) for row in rows] if _SURROGATE.search(text) else rows


def _array(value: object, name: str, announce: Announce) -> list[Any]:
    """The list of rows in a JSON document."""
    if isinstance(value, list):
        return value
    mend = f"Give an array of objects, or an object with one such array under {', '.join(ROW_KEYS)}."
    if not isinstance(value, dict):
        raise DataError(f"the document is {kind_of(value)}, not an array of objects.", mend, file=name)
    lists = [key for key in ROW_KEYS if isinstance(value.get(key), list)]
    if len(lists) != 1:
        keys = ", ".join(repr(key) for key in islice(value, 8))
        what = f"lists under {' and '.join(lists)}" if lists else "no list under any of those names"
        raise DataError(f"the document is an object with the keys {keys}: {what}.", mend, file=name)
    others = [repr(key) for key in value if key != lists[0]]
    if others:
        announce(f"{name}: the rows are those under {lists[0]!r}; {', '.join(others[:8])} beside it is not read.")
    rows: list[Any] = value[lists[0]]
    return rows


def _row(element: object, name: str, number: int) -> Row:
    if not isinstance(element, dict):
        mend = 'Each element of the array must be an object, such as {"prompt": "…", "completion": "…"}.'
        raise DataError(f"row {number} is {kind_of(element)}, not an object.", mend, file=name, line=number)
    return Row(element, Origin(name, number))


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _whole(row: Row) -> Row:
    """The row, unless it holds half of a character: JSON can spell a lone surrogate, no text encoding can."""
    try:
        json.dumps(row.values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        code = f"\\u{ord(error.object[error.start]):04x}"
        raise DataError(
            f"it holds {code}, which is half of a character (a surrogate without its other half).",
            "Remove it, or write the whole character.",
            file=row.origin.file,
            line=row.origin.line,
        ) from error
    return row


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


# ── CSV and TSV ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _read_csv(path: Path, name: str, announce: Announce, limit: int | None) -> list[Row]:
    text = _decoded(path.read_bytes(), name)
    first = text.lstrip().partition("\n")[0]
    delimiter = "," if "," in first else max(",;\t", key=first.count)
    if delimiter != ",":
        announce(f"{name}: the header holds no comma, so columns are taken to be separated by {delimiter!r}.")
    return _delimited_rows(text, delimiter, name, limit)


def _read_tsv(path: Path, name: str, announce: Announce, limit: int | None) -> list[Row]:
    return _delimited_rows(_decoded(path.read_bytes(), name), "\t", name, limit)


def _delimited_rows(text: str, delimiter: str, name: str, limit: int | None) -> list[Row]:
    records = _records(text, delimiter, name)
    line, header = next(records, (1, []))
    header = [column.strip() for column in header]
    twice = next((column for column in header if header.count(column) > 1), None)
    if twice is not None:
        mend = "The first line must give each column its own name."
        raise DataError(f"the header names the column {twice!r} twice.", mend, file=name, line=line)
    rows = []
    for line, cells in islice(records, limit):
        if len(cells) != len(header):
            raise DataError(
                f"this row has {len(cells)} cells, but the header has {len(header)} ({', '.join(header)}).",
                f"Put cells that hold {'a tab' if delimiter == chr(9) else repr(delimiter)}, a quote or a line break "
                'inside double quotes, and write a quote inside them as "".',
                file=name,
                line=line,
            )
        rows.append(Row(dict(zip(header, cells, strict=True)), Origin(name, line)))
    return rows


def _records(text: str, delimiter: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """Each record that is not a blank line, with the line that it begins on (a quoted cell may span several)."""
    # strict: a quote that is never closed is an error; without it the rest of the file would silently become one cell
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    while True:
        try:
            with _cells_up_to(len(text)):
                cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"the row that begins here is not sound: {error} (read up to line {reader.line_num}).",
                'Close every double quote, and write a quote inside a quoted cell as "".',
                file=name,
                line=line,
            ) from error
        if cells:
            yield line, cells
        line = reader.line_num + 1


@contextmanager
def _cells_up_to(num_characters: int) -> Iterator[None]:
    """Lets a cell be as long as the file: the csv module's limit is one number for the process, so it is put back."""
    before = csv.field_size_limit(max(num_characters, csv.field_size_limit()))
    try:
        yield
    finally:
        csv.field_size_limit(before)


# ── Parquet ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _read_parquet(path: Path, name: str, announce: Announce, limit: int | None) -> list[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            batches = (batch.to_pylist() for batch in file.iter_batches(batch_size=1024))
            values = list(islice((row for batch in batches for row in batch), limit))
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        # the last two of values that Python has no type for, such as times to the nanosecond or of the year 20000
        mend = "Check that the file is whole; write it again if not."
        raise DataError(f"this is not a Parquet file that can be read: {error}.", mend, file=name) from error
    return [Row(row, Origin(name, number)) for number, row in enumerate(values, start=1)]


_READERS: dict[str, Reader] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
    ".pq": _read_parquet,
    ".txt": _read_text,
    ".text": _read_text,
    ".md": _read_text,
}
