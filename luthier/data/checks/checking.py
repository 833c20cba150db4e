"""The data check: rows pass by once, in two processes where there are many, and what was noted of them is put together.

A set's ways are learned from its first rows (`learn`), and its form is told from as many as training tells it from. Chunks of rows are then looked at, each for itself (`examine`), and
what comes of them is added up. What is kept of a row does not grow with it: digests, and its text in a file on the disk.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

from luthier.data.checks import (
    answers,
    encoding,
    form,
    languages,
    markers,
    offsets,
    options,
    personal,
    preferences,
    scores,
    secrets,
    structure,
    swapped,
    tools,
    turns,
)
from luthier.data.checks.duplicates import Copies, Digests, digest_rows
from luthier.data.checks.findings import Common, Finding, Notes, by_kind, by_place
from luthier.data.checks.form import NATURALLY, ReadAs
from luthier.data.checks.labels import Labels
from luthier.data.checks.lengths import Lengths
from luthier.data.checks.minhash import MinHash
from luthier.data.checks.source import Questions, stream_rows
from luthier.data.checks.view import SAMPLE, Layout, RowView, learn_layout, view_of
from luthier.data.formats import Natural
from luthier.data.formats.table import ROWS_OF_FORM
from luthier.data.reading import Row
from luthier.data.settings import DataSettings, FormatName, RowTemplate, Sources, files_of, sources_of
from luthier.errors import DataError
from luthier.types import Gives

Announce = Callable[[str], None]
Source = str | tuple[str, ...]
K = TypeVar("K")
_Chunk = tuple[Sequence[Row], bool]
"""Rows, and whether they are held out."""

ROWS_OF_CHUNK = 500
ROWS_FOR_PROCESSES = 8_000
"""With fewer rows the start of a second process takes longer than it saves."""

ROWS_IN_MEMORY = 500_000
"""So many rows' buckets are held in memory; those of larger sets are on the disk."""

ROWS_BETWEEN_WORDS = 50_000


@dataclass(frozen=True)
class Learned:
    """What is usual in a set, learned from its first rows."""

    layout: Layout
    shapes: structure.Shapes
    ends: answers.Ends
    order: turns.Order
    spans: tuple[offsets.Span, ...]
    ranges: scores.Ranges
    tongues: languages.Tongues
    pairs: tuple[swapped.Pair, ...]


@dataclass
class Seen:
    """What came of some rows."""

    num_rows: int = 0
    notes: Notes = field(default_factory=Notes)
    labels: Labels = field(default_factory=Labels)
    lengths: Lengths = field(default_factory=Lengths)
    spoken: languages.Spoken = field(default_factory=languages.Spoken)
    digests: Digests = field(default_factory=Digests)


@dataclass(frozen=True)
class Checked:
    """What the data check found: findings in the order of the files, and what the statistics page shows.

    languages: by field, how many texts are of each. characters: by script.
    form, gives: what the rows are read as; None where they are refused, or several sources are not read alike. reason: why.
    refusal: why nothing can be learned from them. common: of each kind of fault that too many have to be told one by one, a word.
    """

    num_rows: int
    num_held_out: int
    form: FormatName | None
    gives: Gives | None
    reason: str
    findings: tuple[Finding, ...]
    rows_by_length: Mapping[int, int]
    texts_by_length: Mapping[str, Mapping[int, int]]
    labels: Mapping[str, Mapping[str, int]]
    languages: Mapping[str, Mapping[str, int]]
    characters: Mapping[str, int]
    refusal: DataError | None = None
    common: tuple[Common, ...] = ()

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that spoil training."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def counts(self) -> dict[str, int]:
        """How many findings there are of each kind, the most frequent first."""
        return dict(Counter(finding.kind for finding in self.findings).most_common())


def check_data(
    train: Source,
    held_out: Source | None,
    announce: Announce,
    *,
    read_as: ReadAs = NATURALLY,
    num_processes: int = 2,
    rows_in_memory: int = ROWS_IN_MEMORY,
) -> Checked:
    """What is wrong with the rows of a source, and with those held out beside them.

    read_as: how a recipe reads them; a template says which columns ask and which answer.

    Raises: NotFound, NetworkError; DataError for a source that is no file of rows at all.
    """
    total, questions = Seen(), Questions()
    train_rows = questions.among(stream_rows(train, announce, total.notes, read_as))
    head = list(islice(train_rows, ROWS_OF_FORM))
    if not head and not total.notes.findings:
        raise DataError("there are no rows in it.", "Give a file that holds at least one row.", file=_name(train))
    found = (
        read_as.recognised(head) if head else DataError("no line of it is a row.", "Mend its lines.", file=_name(train))
    )
    learned = learn(head[:SAMPLE], read_as.wishes.template)
    processes = num_processes if len(head) >= SAMPLE else 1
    held_rows = questions.among(stream_rows(held_out, announce, total.notes, read_as)) if held_out else iter(())
    with tempfile.TemporaryDirectory(prefix="luthier-check-") as folder:
        copies = Copies(Path(folder), rows_in_memory)
        with closing(copies):
            num_held_out = 0
            chunks: Iterator[_Chunk] = chain(_chunks(chain(_let_go(head), train_rows), False), _chunks(held_rows, True))
            if isinstance(found, Natural):
                chunks = ((form.looked_at(rows, found, total.notes), is_held) for rows, is_held in chunks)
            for seen, is_held_out in _examined(chunks, learned, processes):
                before = total.num_rows
                _put_together(total, seen, copies)
                num_held_out += seen.num_rows if is_held_out else 0
                if before // ROWS_BETWEEN_WORDS != total.num_rows // ROWS_BETWEEN_WORDS:
                    announce(f"{total.num_rows:,} rows are looked through.")
            findings = list(copies.settled(total.notes))
    rare, common = total.notes.settled()
    findings += [*total.notes.findings, *rare, *total.labels.settled(), *total.lengths.settled()]
    return _checked(
        total,
        num_held_out,
        found,
        by_place([questions.in_article(each) for each in _said_once(findings)], _order_of_files(train, held_out)),
        tuple(replace(each, example=questions.in_article(each.example)) for each in common),
    )


def _checked(
    total: Seen,
    num_held_out: int,
    found: Natural | DataError,
    findings: Sequence[Finding],
    common: tuple[Common, ...],
) -> Checked:
    form = found if isinstance(found, Natural) else None
    return Checked(
        total.num_rows - num_held_out,
        num_held_out,
        form.name if form else None,
        form.gives if form else None,
        found.reason if isinstance(found, Natural) else f"{found.found} {found.mend}",
        tuple(findings),
        dict(total.lengths.rows),
        {peer: dict(counts) for peer, counts in total.lengths.texts.items()},
        {peer: dict(counts) for peer, counts in total.labels.counts.items()},
        total.spoken.by_peer,
        dict(total.spoken.characters),
        None if isinstance(found, Natural) else found,
        common,
    )


def recognised(source: Source, read_as: ReadAs = NATURALLY) -> Natural | DataError:
    """What the check takes a source's rows for, without a look at their faults. Raises: as check_data."""
    rows = Questions().among(stream_rows(source, lambda text: None, Notes(), read_as))
    return read_as.recognised(list(islice(rows, ROWS_OF_FORM)))


def check_sources(
    settings: DataSettings, held_out: Sources | None, announce: Announce, takes: Gives | None = None
) -> Checked:
    """`check_data` of each source of the training rows, put together; the rows held out are compared with each.

    takes: what the recipe's objective learns from; None where none was chosen.

    Raises: as check_data.
    """
    held = None if held_out is None else files_of(held_out)
    found = []
    for source in sources_of(settings.train):
        read_as = ReadAs(*settings.form_of(source), takes, settings.max_rows)
        found.append(check_data(source.path, held, announce, read_as=read_as))
    return found[0] if len(found) == 1 else _of_sources(found)


def _of_sources(found: Sequence[Checked]) -> Checked:
    """What was found of several sources."""
    first = found[0]
    refused = next((each for each in found if each.refusal is not None), None)
    is_alike = len({(each.form, each.gives) for each in found}) == 1
    rows, characters = Counter[int](), Counter[str]()
    for each in found:
        rows.update(each.rows_by_length)
        characters.update(each.characters)
    return Checked(
        sum(each.num_rows for each in found),
        first.num_held_out,
        first.form if is_alike else None,
        first.gives if is_alike else None,
        refused.reason
        if refused
        else first.reason
        if is_alike
        else f"the {len(found)} sources are read as {', '.join(str(each.form) for each in found)}",
        tuple(dict.fromkeys(finding for each in found for finding in each.findings)),
        rows,
        _added(each.texts_by_length for each in found),
        _added(each.labels for each in found),
        _added(each.languages for each in found),
        characters,
        None if refused is None else refused.refusal,
        by_kind(word for each in found for word in each.common),
    )


def _added(counts: Iterable[Mapping[str, Mapping[K, int]]]) -> dict[str, Counter[K]]:
    """Counts by peer, added up."""
    added: dict[str, Counter[K]] = defaultdict(Counter)
    for each in counts:
        for peer, of_peer in each.items():
            added[peer].update(of_peer)
    return added


def learn(first: Sequence[Row], template: RowTemplate | None = None) -> Learned:
    """What is usual in a set that begins with these rows."""
    layout = learn_layout(first, template)
    views = [view_of(row, layout) for row in first]
    return Learned(
        layout,
        structure.learn(views),
        answers.learn(views),
        turns.learn(views),
        offsets.learn(views),
        scores.learn(views, layout),
        languages.learn(views, layout),
        swapped.learn(views, layout),
    )


# ── rows by the chunk ───────────────────────────────────────────────────────────────────────────────────────────────


class Worker:
    """What looks at chunks of rows, with what was learned of the set."""

    def __init__(self, learned: Learned) -> None:
        self.learned = learned
        self._minhash = MinHash()

    def examine(self, rows: Sequence[Row], is_held_out: bool) -> Seen:
        """What is to be said of these rows, and what is kept of them."""
        seen, layout = Seen(num_rows=len(rows)), self.learned.layout
        seen.notes.num_rows = len(rows)
        views = [view_of(row, layout) for row in rows]
        for view in views:
            self._look(view, seen)
            seen.labels.see(view, layout, is_held_out)
            seen.lengths.see(view, layout)
        seen.digests = digest_rows(views, layout, is_held_out, self._minhash)
        return seen

    def _look(self, view: RowView, seen: Seen) -> None:
        learned, notes = self.learned, seen.notes
        notes.texts.update(cell.peer for cell in view.cells)
        for check in (encoding, markers, secrets, personal, preferences, tools, options):
            check.look(view, learned.layout, notes)
        structure.look(view, learned.shapes, notes)
        answers.look(view, learned.layout, learned.ends, notes)
        turns.look(view, learned.order, notes)
        offsets.look(view, learned.spans, notes)
        scores.look(view, learned.ranges, learned.layout, notes)
        languages.look(view, learned.tongues, learned.layout, notes, seen.spoken)
        swapped.look(view, learned.pairs, notes)


_WORKER: list[Worker] = []  # of a process of the pool, set once as it starts


def _begin(learned: Learned) -> None:
    _WORKER.append(Worker(learned))


def _examine(rows: Sequence[Row], is_held_out: bool) -> Seen:
    return _WORKER[0].examine(rows, is_held_out)


def _let_go(rows: list[Row]) -> Iterator[Row]:
    """The rows in order, each taken out of the list."""
    rows.reverse()
    while rows:
        yield rows.pop()


def _chunks(rows: Iterable[Row], is_held_out: bool) -> Iterator[_Chunk]:
    rest = iter(rows)
    while chunk := list(islice(rest, ROWS_OF_CHUNK)):
        yield chunk, is_held_out


def _examined(chunks: Iterator[_Chunk], learned: Learned, num_processes: int) -> Iterator[tuple[Seen, bool]]:
    """Each chunk examined, in order; by other processes, where there are enough rows for them."""
    head = list(islice(chunks, ROWS_FOR_PROCESSES // ROWS_OF_CHUNK)) if num_processes > 1 else []
    if sum(len(rows) for rows, _ in head) < ROWS_FOR_PROCESSES:
        worker = Worker(learned)
        for rows, is_held_out in chain(head, chunks):
            yield worker.examine(rows, is_held_out), is_held_out
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, context, _begin, (learned,)) as pool:
        waiting: deque[tuple[Future[Seen], bool]] = deque()
        for rows, is_held_out in chain(head, chunks):
            waiting.append((pool.submit(_examine, rows, is_held_out), is_held_out))
            if len(waiting) > 3 * num_processes:
                done, of_held_out = waiting.popleft()
                yield done.result(), of_held_out
        for done, of_held_out in waiting:
            yield done.result(), of_held_out


def _put_together(total: Seen, seen: Seen, copies: Copies) -> None:
    total.num_rows += seen.num_rows
    total.notes.take(seen.notes)
    total.labels.take(seen.labels)
    total.lengths.take(seen.lengths)
    total.spoken.take(seen.spoken)
    copies.take(seen.digests)


# ── what is said of them ────────────────────────────────────────────────────────────────────────────────────────────


def _said_once(findings: list[Finding]) -> list[Finding]:
    """Without what the form says of a row that another check says more exactly."""
    told = {
        (finding.file, finding.line)
        for finding in findings
        if finding.kind != form.KIND and finding.severity == "error"
    }
    return [finding for finding in findings if finding.kind != form.KIND or (finding.file, finding.line) not in told]


def _order_of_files(train: Source, held_out: Source | None) -> dict[str, int]:
    names = [
        *((train,) if isinstance(train, str) else train),
        *((held_out,) if isinstance(held_out, str) else held_out or ()),
    ]
    return {name: number for number, name in enumerate(names)}


def _name(source: Source) -> str:
    return source if isinstance(source, str) else ", ".join(source)
