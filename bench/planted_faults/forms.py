"""Files taken apart into records and what lies between them, so that one record can be changed and no other byte is.

A record's `number` is what a finding calls its line: the first line of it in a file of lines, its place in a JSON document.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

Values = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """One row: its bytes, and what they say. `last` is its last line; the same as `number` in a JSON document."""

    number: int
    last: int
    data: bytes
    values: Values


@dataclass(frozen=True)
class Form:
    """How one kind of file is taken apart, and how a row's values are written in it.

    has_lines: whether records are known by their lines. write: values and the record's own bytes before the change, which tell
    the style (escapes, separators), to new bytes.
    """

    read: Callable[[bytes], tuple[list[Record], list[bytes]]]
    write: Callable[[Values, bytes], bytes]
    has_lines: bool = True
    is_json_lines: bool = False


@dataclass(frozen=True)
class CleanFile:
    """A whole file: `between` holds what stands before the first record, between two, and after the last."""

    form: Form
    records: tuple[Record, ...]
    between: tuple[bytes, ...]

    def changed(self, changes: Mapping[int, bytes]) -> bytes:
        """The file's bytes with some records replaced, by their index."""
        parts = [self.between[0]]
        for index, record in enumerate(self.records):
            parts += [changes.get(index, record.data), self.between[index + 1]]
        return b"".join(parts)

    def index_at(self) -> dict[int, int]:
        """For every line (or row number) that belongs to a record, the record's index."""
        return {
            line: index
            for index, record in enumerate(self.records)
            for line in range(record.number, record.last + 1)
        }  # fmt: skip


def read_clean(path: Path, form: Form) -> CleanFile:
    """The file taken apart; joined again it is the same."""
    data = path.read_bytes()
    records, between = form.read(data)
    clean = CleanFile(form, tuple(records), tuple(between))
    assert clean.changed({}) == data, path
    return clean


# ── files of lines ──────────────────────────────────────────────────────────────────────────────────────────────────


def _lines_of(data: bytes) -> list[tuple[bytes, bytes]]:
    """Each line and what ends it."""
    found = []
    for line in io.BytesIO(data):
        body = line.rstrip(b"\r\n")
        found.append((body, line[len(body) :]))
    return found


def _json_dumped(values: Values, was: bytes) -> bytes:
    """In the style of the line that it replaces: with characters escaped, if that line escaped them all."""
    is_plain_ascii = was.isascii() and b"\\u" in was
    return json.dumps(values, ensure_ascii=is_plain_ascii).encode()


def _read_json_lines(data: bytes) -> tuple[list[Record], list[bytes]]:
    records, between = [], [b""]
    for number, (line, end) in enumerate(_lines_of(data), start=1):
        if line:
            records.append(Record(number, number, line, json.loads(line)))
            between.append(end)
        else:
            between[-1] += end
    return records, between


JSON_LINES = Form(_read_json_lines, _json_dumped, is_json_lines=True)


def separated(delimiter: str, columns: tuple[str, ...] | None = None, *, quotes: bool = False) -> Form:
    """CSV and its kin; without `columns` the first line names them."""

    def split(line: bytes) -> list[str]:
        text = line.decode()
        return next(csv.reader([text], delimiter=delimiter)) if quotes else text.split(delimiter)

    def read(data: bytes) -> tuple[list[Record], list[bytes]]:
        names, records, between = columns, [], [b""]
        for number, last, body, end in _whole_records(data, quotes):
            if names is None:
                names = tuple(split(body))
                between[-1] += body + end
                continue
            records.append(Record(number, last, body, dict(zip(names, split(body), strict=True))))
            between.append(end)
        return records, between

    def write(values: Values, was: bytes) -> bytes:
        if not quotes:
            return delimiter.join(values.values()).encode()
        out = io.StringIO(newline="")
        csv.writer(out, delimiter=delimiter, lineterminator="").writerow(values.values())
        return out.getvalue().encode()

    return Form(read, write)


def _whole_records(data: bytes, quotes: bool) -> Iterator[tuple[int, int, bytes, bytes]]:
    """First line, last line, bytes and ending of each; a record goes on over line ends while a quote is open."""
    held, first = b"", 0
    for number, (line, end) in enumerate(_lines_of(data), start=1):
        first = first or number
        held += line
        if quotes and held.count(b'"') % 2:
            held += end
            continue
        yield first, number, held, end
        held, first = b"", 0


def _read_sentences(data: bytes) -> tuple[list[Record], list[bytes]]:
    """A token and its tag a line, an empty line after each sentence."""
    records: list[Record] = []
    between, held, first = [b""], b"", 0
    for number, (line, end) in enumerate(_lines_of(data), start=1):
        if line.strip():
            first = first or number
            held += line + end
            continue
        if held:
            pairs = [pair.split("\t") for pair in held.decode().rstrip("\n").split("\n")]
            values = {"tokens": [token for token, _ in pairs], "tags": [tag for _, tag in pairs]}
            records.append(Record(first, number - 1, held, values))
            between.append(b"")
            held, first = b"", 0
        between[-1] += line + end
    return records, between


def _write_sentence(values: Values, was: bytes) -> bytes:
    pairs = zip(values["tokens"], values["tags"], strict=True)
    return "".join(f"{token}\t{tag}\n" for token, tag in pairs).encode()


SENTENCES = Form(_read_sentences, _write_sentence)


# ── JSON documents ──────────────────────────────────────────────────────────────────────────────────────────────────


def document(depth: int, *, escaped: bool) -> Form:
    """A document indented by two, whose rows lie `depth` levels in: 1 for an array of rows, 6 for the questions of SQuAD.

    escaped: whether other characters than ASCII are written as escapes.
    """

    def write(values: Values, was: bytes) -> bytes:
        text = json.dumps(values, indent=2, ensure_ascii=escaped)
        return text.replace("\n", "\n" + "  " * depth).encode()

    def read(data: bytes) -> tuple[list[Record], list[bytes]]:
        records, ends = [], [(0, 0)]
        for number, values in enumerate(_rows_of(json.loads(data)), start=1):
            written = write(values, b"")
            start = data.index(written, ends[-1][1])
            ends.append((start, start + len(written)))
            records.append(Record(number, number, written, values))
        ends.append((len(data), len(data)))
        return records, [data[before[1] : after[0]] for before, after in pairwise(ends)]

    return Form(read, write, has_lines=False)


def _rows_of(value: Any) -> list[Values]:
    if isinstance(value, list):
        return value
    return [row for article in value["data"] for paragraph in article["paragraphs"] for row in paragraph["qas"]]
