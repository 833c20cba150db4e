"""Rows for tests of their forms: inline ones, and files of the shared sets with their rows as the reader gives them."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from luthier.data.formats import faults, to_records
from luthier.data.reading import Row, read_rows
from luthier.data.settings import NO_WISHES, Wishes
from luthier.errors import DataError
from luthier.types import Gives, Message, Origin, Record


def rows_of(*values: dict[str, Any]) -> list[Row]:
    return _numbered("rows.jsonl", values)


def records_of(
    *values: dict[str, Any], takes: Gives = "text", form: str | None = None, wishes: Wishes = NO_WISHES
) -> list[Record]:
    """What the rows become; `form` is what they must have been taken for."""
    found = to_records(rows_of(*values), "auto", takes, wishes)
    assert form is None or found.name == form
    return [record for record, _ in found.records]


def fault_of(
    well: dict[str, Any], values: dict[str, Any], takes: Gives = "text", wishes: Wishes = NO_WISHES
) -> DataError:
    """What is wrong with a row that stands third among rows that are well."""
    (fault,) = faults(rows_of(well, well, values, well), "auto", takes, wishes)
    assert (fault.file, fault.line) == ("rows.jsonl", 3)
    return fault


def said(messages: Iterable[Message]) -> list[tuple[str, str, bool | None]]:
    """Role, content and the row's own wish to learn it."""
    return [(message.role, message.content, message.learn) for message in messages]


def shared_rows(path: Path) -> list[Row]:
    """The rows of a file of the shared sets, in the shape in which each kind of file is read.

    Files without a header have numbered columns, CoNLL has tokens and tags, PubMedQA's object one row for each key.
    """
    name = path.name
    if path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            return _numbered(name, (json.loads(line) for line in lines))
    if path.suffix == ".conll":
        lines = path.read_text(encoding="utf-8").split("\n")
        blocks = [
            [line.split("\t") for line in block] for full, block in groupby(lines, lambda x: bool(x.strip())) if full
        ]
        return _numbered(name, ({"tokens": [a for a, _ in block], "tags": [b for _, b in block]} for block in blocks))
    if name == "pqal_400.json":
        articles = json.loads(path.read_text(encoding="utf-8"))
        return _numbered(name, ({"id": key, **article} for key, article in articles.items()))
    if name == "test_4000.csv":
        with path.open(encoding="utf-8", newline="") as file:
            return _headerless(name, csv.reader(file))
    if name.endswith("_labelled.txt") or name == "strategyqa_train.tsv":
        lines = path.read_text(encoding="utf-8").split("\n")
        return _headerless(name, (line.split("\t") for line in lines if line.strip()))
    return read_rows(str(path), lambda _: None)


def _headerless(name: str, lines: Iterable[list[str]]) -> list[Row]:
    return _numbered(name, ({f"column_{i}": cell for i, cell in enumerate(line, start=1)} for line in lines))


def _numbered(name: str, values: Iterable[dict[str, Any]]) -> list[Row]:
    return [Row(value, Origin(name, line)) for line, value in enumerate(values, start=1)]
