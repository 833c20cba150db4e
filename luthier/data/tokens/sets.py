"""A source of rows → its token set: in memory where it is small, else in columns, kept on the disk where they may be.

What is said and what is raised is the same wherever a set is, from whichever processes it comes, and whether it was made now or
before: reading goes before recognising, then every row is made a record, then tokens, then what it teaches, and of each of these
the first fault is raised once the one before has none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from luthier.data.formats import Reading, nothing_in, reading_of, said_of_empty, summary_of
from luthier.data.formats.message_trees import iter_whole_rows
from luthier.data.formats.table import ROWS_OF_FORM
from luthier.data.hub import is_hub_name, stored_files
from luthier.data.reading import Row, called
from luthier.data.reading.class_names import FILES as CLASS_NAMES
from luthier.data.reading.places import places_of
from luthier.data.settings import FormatName, Wishes
from luthier.data.tokens.cache import Meta, Put, TokenCache, TooMuch, file_keys, set_name
from luthier.data.tokens.columns import Kept, KeptExamples, KeptRecords, Writer, in_memory
from luthier.data.tokens.making import Job, Summary, counted, labels_in, make, said_of_long
from luthier.data.tokens.workers import Run, packed_runs
from luthier.errors import DataError, ResourceError
from luthier.store.files import locked
from luthier.types import Example, Gives, Origin, Record

Announce = Callable[[str], None]

ROWS_TO_KEEP = 10_000
BYTES_TO_KEEP = 32 * 10**6
"""A set of no more rows, from files of fewer bytes, is small: it is made each time, and held in memory."""
BYTES_TO_HASH = 10**6
"""Files of fewer bytes together are a small set, unread."""
ROWS_FOR_PROCESSES = 20_000
"""With fewer rows the start of other processes takes longer than they save, unless they are asked for."""
ROWS_OF_RUN = 256
ROWS_BETWEEN_WORDS = 20_000
_MOST_PROCESSES = 8


@dataclass(frozen=True)
class Wanted:
    """A source and what it is to become.

    key: what decides the examples beside the source and its reading; None where that is not known, so that nothing is kept.
    """

    source: str | tuple[str, ...]
    format: FormatName
    takes: Gives
    wishes: Wishes
    max_rows: int | None
    job: Job
    key: Any = None

    @property
    def names(self) -> tuple[str, ...]:
        """The files, folders, patterns or hub sets."""
        return (self.source,) if isinstance(self.source, str) else self.source

    @property
    def name(self) -> str:
        """The source in words."""
        return self.names[0] if len(self.names) == 1 else f"{self.names[0]} and {len(self.names) - 1} more"


@dataclass(frozen=True)
class Keeping:
    """Where large sets are kept, and by how many processes they are made. cache: None for none."""

    cache: TokenCache | None = None
    processes: int | Literal["auto"] = "auto"

    def for_rows(self, num_rows: int) -> int:
        """How many processes make so many rows."""
        if self.processes != "auto":
            return self.processes
        return min(os.cpu_count() or 1, _MOST_PROCESSES) if num_rows >= ROWS_FOR_PROCESSES else 1


@dataclass(frozen=True)
class TokenSet:
    """Records and what each teaches, aligned; and what was said of them."""

    records: Sequence[Record]
    examples: Sequence[Example]
    meta: Meta

    def placed(self, first_document: int, task: str | None) -> TokenSet:
        """The same set as part of a larger one, where its documents are counted from a number on, and as one task of it."""
        if first_document == 0 and task is None:
            return self
        if isinstance(self.examples, KeptExamples):
            kept = replace(self.examples.kept, first_document=first_document, task=task)
            return TokenSet(KeptRecords(kept), KeptExamples(kept), self.meta)
        moved = (
            replace(row, document=first_document + row.document, origin=replace(row.origin, task=task))
            for row in self.examples
        )
        return replace(self, examples=tuple(moved))


def token_set(wanted: Wanted, keeping: Keeping, announce: Announce) -> TokenSet:
    """The token set of a source, from the cache where it is there.

    Raises: the errors of reading, recognising and rendering rows; GateRefusal for rows that are too long.
    """
    cache, announce = keeping.cache, _saying_once(announce)
    may_keep = cache is not None and wanted.key is not None
    files = _files(wanted, announce, fetches=may_keep)
    num_bytes = sum(path.stat().st_size for _, path in files or ())
    if cache is None or files is None or not may_keep or num_bytes < BYTES_TO_HASH:
        return _without_cache(wanted, keeping, num_bytes, announce)
    reads = [wanted.names, wanted.format, wanted.takes, wanted.max_rows, _wishes_key(wanted.wishes)]
    name = set_name(called(wanted.names[0]), [*reads, list(file_keys(files, CLASS_NAMES)), wanted.key])
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(cache.folder / name, announce=announce))
        except ResourceError as error:
            return _not_kept(wanted, keeping, num_bytes, announce, error.found)
        found = cache.find(name)
        if isinstance(found, tuple):
            return _found(
                *found, f"{wanted.name}: its tokens are there from before, in {cache.folder / name}.", announce
            )
        if found is not None:
            announce(f"The tokens kept in {cache.folder / name} are not whole ({found}): they are made anew.")
        opened = _opened(wanted, announce)
        if _is_small(opened, num_bytes):
            return _small(opened)
        try:
            cache.write(name, lambda put: _written(opened, keeping, put))
            found = cache.find(name)
        except TooMuch:
            limit = cache.limit_bytes / 1e9
            return _not_kept(wanted, keeping, num_bytes, announce, f"They take more than data.cache_gb ({limit:g}).")
        except ResourceError as error:
            return _not_kept(wanted, keeping, num_bytes, announce, error.found)
        if not isinstance(found, tuple):
            return _not_kept(wanted, keeping, num_bytes, announce, f"The cache: {found or 'it is not there'}.")
        return _set(*found)


def labels_before(wanted: Wanted) -> set[str]:
    """The labels of a source's rows, before it is known which rows stay; up to the first fault, which is told later."""
    labels: set[str] = set()
    with suppress(DataError):
        opened = _opened(wanted, lambda text: None)
        for row in chain(opened.head, opened.rest):
            labels.update(label for record in opened.form.to_records(row) for label in labels_in(record))
    return labels


def _files(wanted: Wanted, announce: Announce, *, fetches: bool) -> list[tuple[str, Path]] | None:
    """The files that are read, with their names; None where some rows come from the hub and it is not known which files hold them.

    fetches: whether sets of the hub are fetched to know them, but for those of which a few rows are wanted.
    """
    found: list[tuple[str, Path]] = []
    for name in wanted.names:
        if not is_hub_name(name):
            found += [(place.name, place.path) for place in places_of(name, lambda text: None)]
            continue
        files = stored_files(name, announce) if fetches and wanted.max_rows is None else ()
        if not files:
            return None
        found += [(f"{name} {number}", file) for number, file in enumerate(files, start=1)]
    return found


def _saying_once(announce: Announce) -> Announce:
    """Says no sentence twice: a set is looked for, and then read."""
    said = set[str]()

    def say(text: str) -> None:
        if text not in said:
            said.add(text)
            announce(text)

    return say


def _wishes_key(wishes: Wishes) -> list[Any]:
    template = None if wishes.template is None else wishes.template.model_dump(mode="json")
    return [template, wishes.rationale, wishes.threads]


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Opened:
    """A source whose first rows are read; those that come after them are held to their form, and never all in memory.

    said: what was said so far, and is to be said again when it comes from the cache.
    """

    wanted: Wanted
    form: Reading
    head: deque[Row]
    rest: Iterator[Row]
    num_head: int
    said: list[str]
    announce: Announce

    @property
    def is_whole(self) -> bool:
        """Whether all rows are read."""
        return self.num_head < ROWS_OF_FORM

    def say(self, text: str) -> None:
        """Say something that is always said of this source."""
        self.said.append(text)
        self.announce(text)

    def say_form(self, num_rows: int) -> None:
        """Say how many rows there are, and how they are read."""
        form = f"read as {self.form.name} ({self.form.reason.rstrip('.')})"
        self.say(f"{self.wanted.name}: {counted(num_rows, 'row')}, {form}.")


def _opened(wanted: Wanted, announce: Announce) -> _Opened:
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        announce(text)

    rows = iter_whole_rows(wanted.source, say, wanted.max_rows, format=wanted.format, wishes=wanted.wishes)
    head = list(islice(rows, ROWS_OF_FORM))
    form = reading_of(head, wanted.format, wanted.takes, wanted.wishes)
    return _Opened(wanted, form, deque(head), rows, len(head), said, announce)


def _is_small(opened: _Opened, num_bytes: int) -> bool:
    return opened.num_head <= ROWS_TO_KEEP and opened.is_whole and num_bytes < BYTES_TO_KEEP


class _Converted(Iterable[tuple[Record, Origin]]):
    """The records of a source; what is wrong with rows is kept, and from the first fault on rows are only looked through."""

    def __init__(self, opened: _Opened) -> None:
        self.num_rows = 0
        self.num_empty = 0
        self.faults: list[DataError] = []
        self.stops = False
        self._opened = opened
        self._digest = hashlib.sha256()

    def __iter__(self) -> Iterator[tuple[Record, Origin]]:
        head = self._opened.head
        first = (head.popleft() for _ in range(len(head)))  # so that they are let go of
        for row in chain(first, self._opened.rest):
            self.num_rows += 1
            # default=str: Parquet may hold dates and bytes, which JSON has not
            self._digest.update(json.dumps(row.values, sort_keys=True, default=str).encode())
            self._digest.update(b"\n")
            try:
                records = self._opened.form.to_records(row)
            except DataError as error:
                self.faults.append(error)
                continue
            self.num_empty += not records
            if not (self.stops or self.faults):
                yield from ((record, row.origin) for record in records)

    @property
    def sha256(self) -> str:
        """The hash of the rows' values in order; the same rows hash the same from any file or folder."""
        return self._digest.hexdigest()

    def check(self, file: str) -> None:
        """Raise DataError for rows at fault, or if none holds what is to be learned."""
        name = self._opened.form.name
        if self.faults:
            raise summary_of(self.faults, self.num_rows, name)
        if self.num_empty == self.num_rows:
            raise nothing_in(file, name)


def _notes(opened: _Opened, converted: _Converted, summary: Summary) -> tuple[str, ...]:
    """What is to be said of rows that became tokens. Raises the first fault, if there is one."""
    if summary.unrendered is not None:
        raise summary.unrendered
    job = opened.wanted.job
    notes = [*opened.form.notes, *said_of_empty(converted.num_empty)]
    if not opened.is_whole:
        notes.append(f"The form of the rows is told from the first {ROWS_OF_FORM:,}.")
    notes += said_of_long(summary, job)
    if summary.num_pieces > summary.num_records:
        texts = counted(summary.num_records, "text")
        notes.append(f"{texts} cut into {summary.num_pieces:,} pieces of {job.limit:,} tokens or fewer.")
    if summary.unmade is not None:
        raise summary.unmade
    for note in notes:
        opened.say(note)
    return tuple(notes)


def _meta(opened: _Opened, converted: _Converted, summary: Summary, files: tuple[str, ...]) -> Meta:
    notes = _notes(opened, converted, summary)
    form, labels = opened.form, tuple(sorted(summary.labels))
    lengths = summary.lengths(opened.wanted.job.limit)
    return Meta(tuple(opened.said), notes, form.name, form.reason, converted.sha256, labels, files, lengths)


# ── sets in memory and in columns ───────────────────────────────────────────────────────────────────────────────────


def _without_cache(wanted: Wanted, keeping: Keeping, num_bytes: int, announce: Announce) -> TokenSet:
    opened = _opened(wanted, announce)
    if _is_small(opened, num_bytes):
        return _small(opened)
    columns: list[Any] = []
    meta = _written(opened, keeping, lambda name, column: columns.append((name, column)))
    return _set(Kept(in_memory(columns), meta.files), meta)


def _not_kept(wanted: Wanted, keeping: Keeping, num_bytes: int, announce: Announce, why: str) -> TokenSet:
    announce(f"The tokens of {wanted.name} are held in memory and not kept on the disk. {why}")
    return _without_cache(wanted, replace(keeping, cache=None), num_bytes, announce)


def _small(opened: _Opened) -> TokenSet:
    """The set made here and now."""
    file, converted = opened.head[0].origin.file, _Converted(opened)
    records = list(converted)
    converted.check(file)
    opened.say_form(converted.num_rows)
    made = make(records, opened.wanted.job)
    return TokenSet(tuple(made.records), tuple(made.examples), _meta(opened, converted, made.summary, ()))


def _written(opened: _Opened, keeping: Keeping, put: Put) -> Meta:
    """Make the set's columns and hand them over, piece by piece."""
    file, converted, name = opened.head[0].origin.file, _Converted(opened), opened.wanted.name
    if not opened.is_whole:
        opened.announce(f"{name}: more than {ROWS_OF_FORM:,} rows, read as {opened.form.name}.")
    writer, summary = Writer(put), Summary()
    for packed, of_run in packed_runs(_runs(converted), opened.wanted.job, keeping.for_rows(opened.num_head)):
        if summary.unrendered is None:
            writer.add(packed, summary.num_pieces)
        before = summary.num_records // ROWS_BETWEEN_WORDS
        summary.add(of_run)
        converted.stops = summary.unrendered is not None
        if summary.num_records // ROWS_BETWEEN_WORDS > before:
            opened.announce(f"{name}: {summary.num_records:,} rows are tokens.")
    converted.check(file)
    opened.say_form(converted.num_rows)
    return _meta(opened, converted, summary, writer.files)


def _runs(converted: _Converted) -> Iterator[Run]:
    records = iter(converted)
    while run := list(islice(records, ROWS_OF_RUN)):
        yield run


def _set(kept: Kept, meta: Meta) -> TokenSet:
    return TokenSet(KeptRecords(kept), KeptExamples(kept), meta)


def _found(kept: Kept, meta: Meta, said: str, announce: Announce) -> TokenSet:
    announce(said)
    for text in meta.said:
        announce(text)
    return _set(kept, meta)
