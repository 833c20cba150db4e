"""Examples and records as columns: a line of numbers a row, and flat arrays that the lines point into.

    rows        a line a row: where its values end in the others, where it comes from, and its facts (`luthier.data.facts`)
    parts       each part's number of tokens, its parent (-1: none), and whether it is causal
    tokens      the tokens of the parts, then those of the source
    targets     position, token, weight and answer of each target
    types       which text each token is of, where a row has two
    values      the number of each target, where rows have numbers
    records     a line of JSON a row

A row's values begin where those of the row before end. Shapes: R rows, N targets of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.data.facts import FACTS, RECORD_FACTS, Digests, Table, digest_of, fact_of, record_fact_of
from luthier.data.sequences import Lazy
from luthier.data.tokens.making import Made
from luthier.data.tokens.record_json import record_line, record_of
from luthier.types import Example, Origin, Part, Record

ENDS = ("parts", "tokens", "targets", "types", "values", "records")
ROW = np.dtype(
    [
        ("document", "<i8"),
        ("file", "<i4"),  # which of the files
        ("line", "<i8"),
        ("source", "<i8"),  # tokens of it; -1 where there is none
        ("has_types", "?"),
        ("has_values", "?"),
        ("ends", [(name, "<i8") for name in ENDS]),
        ("facts", FACTS),
        ("record", RECORD_FACTS),
        ("digest", "u1", 32),
    ]
)
PART = np.dtype([("length", "<i4"), ("parent", "<i4"), ("causal", "?")])
TARGET = np.dtype([("source", "<i4"), ("token", "<i4"), ("weight", "<f4"), ("sample", "<i4")])
DTYPES: Mapping[str, np.dtype[Any]] = {
    "rows": ROW,
    "parts": PART,
    "tokens": np.dtype("<i4"),
    "targets": TARGET,
    "types": np.dtype("i1"),
    "values": np.dtype("<f4"),
    "records": np.dtype("u1"),
}

Columns = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Packed:
    """The columns of some rows. files: the names of those that `file` counts."""

    columns: Columns
    files: tuple[str, ...]


def pack(made: Made) -> Packed:
    """The columns of a run of rows. Raises: DataError for a record that cannot be kept."""
    files: dict[str, int] = {}
    flat: dict[str, list[NDArray[Any]]] = {name: [] for name in ENDS}
    rows = np.zeros(len(made.examples), dtype=ROW)
    ends = np.zeros(len(ENDS), dtype=np.int64)
    for index, (record, example) in enumerate(zip(made.records, made.examples, strict=True)):
        for place, (name, values) in enumerate(_values(record, example).items()):
            ends[place] += len(values)
            flat[name].append(values)
        origin = example.origin
        rows[index] = (
            example.document,
            files.setdefault(origin.file, len(files)),
            origin.line,
            -1 if example.source_S is None else len(example.source_S),
            example.types_P is not None,
            example.value_N is not None,
            tuple(ends.tolist()),
            fact_of(example),
            record_fact_of(record),
            np.frombuffer(digest_of(example), dtype=np.uint8),
        )
    columns = {name: np.concatenate(arrays) if arrays else np.zeros(0, DTYPES[name]) for name, arrays in flat.items()}
    return Packed({"rows": rows, **columns}, tuple(files))


def _values(record: Record, example: Example) -> dict[str, NDArray[Any]]:
    """The values of one row, in the order of `ENDS`."""
    assert example.num_virtual == 0, "placeholders are put before rows when a method is known"
    parts = example.parts
    tokens = [part.tokens_T for part in parts] + ([] if example.source_S is None else [example.source_S])
    targets = np.empty(example.num_learned, dtype=TARGET)
    targets["source"], targets["token"] = example.source_N, example.token_N
    targets["weight"], targets["sample"] = example.weight_N, example.sample_N
    none = np.zeros(0)
    return {
        "parts": np.array(
            [(len(part.tokens_T), -1 if part.parent is None else part.parent, part.causal) for part in parts], PART
        ),
        "tokens": np.concatenate(tokens).astype(DTYPES["tokens"]),
        "targets": targets,
        "types": (none if example.types_P is None else example.types_P).astype(DTYPES["types"]),
        "values": (none if example.value_N is None else example.value_N).astype(DTYPES["values"]),
        "records": np.frombuffer(record_line(record), dtype=np.uint8),
    }


class Writer:
    """Puts runs of rows one after another. put: takes a column's name and what comes next in it."""

    def __init__(self, put: Callable[[str, NDArray[Any]], None]) -> None:
        self._put = put
        self._ends = dict.fromkeys(ENDS, 0)
        self._files: dict[str, int] = {}

    @property
    def files(self) -> tuple[str, ...]:
        """The files that rows come from, in their order."""
        return tuple(self._files)

    def add(self, packed: Packed, first_document: int) -> None:
        """Put a run of rows after those before; first_document: of the run."""
        rows = packed.columns["rows"].copy()
        renumbered = [self._files.setdefault(name, len(self._files)) for name in packed.files]
        rows["document"] += first_document
        rows["file"] = np.array(renumbered, dtype=np.int32)[rows["file"]] if renumbered else rows["file"]
        for name in ENDS:
            rows["ends"][name] += self._ends[name]
            self._ends[name] += len(packed.columns[name])
        for name, column in {**packed.columns, "rows": rows}.items():
            self._put(name, column)


def in_memory(parts: Iterable[tuple[str, NDArray[Any]]]) -> Columns:
    """Columns put together of what a `Writer` put."""
    found: dict[str, list[NDArray[Any]]] = {name: [np.zeros(0, dtype)] for name, dtype in DTYPES.items()}
    for name, column in parts:
        found[name].append(column)
    return {name: np.concatenate(arrays) for name, arrays in found.items()}


@dataclass(frozen=True)
class Kept:
    """Rows in columns, in memory or in mapped files. files: their names. task, first_document: of all of these rows."""

    columns: Columns
    files: tuple[str, ...]
    task: str | None = None
    first_document: int = 0

    @property
    def rows(self) -> Table:
        """The line of each row."""
        return self.columns["rows"]

    def values(self, index: int) -> dict[str, NDArray[Any]]:
        """What each column holds of a row."""
        ends = self.rows["ends"]
        first = ends[index - 1].item() if index else (0,) * len(ENDS)
        spans = zip(ENDS, first, ends[index].item(), strict=True)
        return {name: self.columns[name][start:end] for name, start, end in spans}


class KeptExamples(Lazy[Example]):
    """The examples of rows in columns, each made when it is asked for."""

    def __init__(self, kept: Kept) -> None:
        self.kept = kept

    def __len__(self) -> int:
        return len(self.kept.rows)

    @property
    def facts_R(self) -> Table:
        """The facts of the examples."""
        return np.asarray(self.kept.rows["facts"])

    @property
    def digests_R(self) -> Digests:
        """The digests of the examples."""
        return np.asarray(self.kept.rows["digest"])

    def item(self, index: int) -> Example:
        """The example of a row."""
        kept = self.kept
        row = kept.rows[index]
        values = kept.values(index)
        targets, parts = values["targets"], values["parts"]
        tokens_P = values["tokens"].astype(np.int64)
        cuts = np.cumsum(parts["length"])
        own = np.split(tokens_P[: cuts[-1]], cuts[:-1]) if len(parts) > 1 else [tokens_P[: cuts[-1]]]
        return Example(
            parts=tuple(
                Part(tokens_T, None if parent < 0 else parent, causal)
                for tokens_T, (_, parent, causal) in zip(own, parts.tolist(), strict=True)
            ),
            source_N=targets["source"].astype(np.int64),
            token_N=targets["token"].astype(np.int64),
            weight_N=np.array(targets["weight"], dtype=np.float32),
            sample_N=targets["sample"].astype(np.int64),
            document=kept.first_document + int(row["document"]),
            origin=Origin(kept.files[row["file"]], int(row["line"]), kept.task),
            source_S=None if row["source"] < 0 else tokens_P[cuts[-1] :],
            types_P=values["types"].astype(np.int64) if row["has_types"] else None,
            value_N=np.array(values["values"]) if row["has_values"] else None,
        )


class KeptRecords(Lazy[Record]):
    """The records of rows in columns, each made when it is asked for."""

    def __init__(self, kept: Kept) -> None:
        self.kept = kept

    def __len__(self) -> int:
        return len(self.kept.rows)

    @property
    def facts_R(self) -> Table:
        """The facts of the records."""
        return np.asarray(self.kept.rows["record"])

    def item(self, index: int) -> Record:
        """The record of a row."""
        return record_of(self.kept.values(index)["records"].tobytes())
