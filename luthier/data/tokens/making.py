"""Records → tokens → examples, a run of records at a time, and what is to be said of rows that are too long.

A run of records is made without a look at others, so that several processes may each make some. What is wrong with rows is
kept until all are made: which fault is raised then depends on the rows alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from luthier.data.rendering import Renderer
from luthier.errors import DataError, GateRefusal, LuthierError
from luthier.types import (
    Conversation,
    Example,
    Labelled,
    Origin,
    Preference,
    Ranking,
    Record,
    Rendered,
    RowLengths,
    Tagged,
    TextsAs,
    Verdict,
    Weighed,
)

MakeExample = Callable[[Rendered, int, Origin], Example]
TooLong = Literal["auto", "refuse", "truncate", "drop", "split"]


@dataclass(frozen=True)
class Job:
    """How records become examples. limit: most tokens of a row. splits: whether texts that have more are cut into pieces.

    weighs: whether rows and answers may count more or less than others.
    """

    renderer: Renderer
    make_example: MakeExample
    texts: TextsAs
    limit: int
    splits: bool
    too_long: TooLong
    weighs: bool = True


@dataclass
class Tally:
    """Rows that are too long: how many, the first and its tokens, the most that one has, and what cutting them costs.

    halved, emptied: those whose second text, or whose answer, was cut off. lost, lost_learned: tokens, and learned ones, of all
    texts, whether or not they are cut.
    """

    count: int = 0
    first: Origin | None = None
    first_tokens: int = 0
    longest: int = 0
    halved: int = 0
    first_halved: Origin | None = None
    emptied: int = 0
    first_emptied: Origin | None = None
    lost: int = 0
    lost_learned: int = 0

    def add(self, later: Tally) -> None:
        """Count rows that come after these."""
        if self.first is None:
            self.first, self.first_tokens = later.first, later.first_tokens
        self.first_halved = self.first_halved or later.first_halved
        self.first_emptied = self.first_emptied or later.first_emptied
        self.longest = max(self.longest, later.longest)
        self.count += later.count
        self.halved += later.halved
        self.emptied += later.emptied
        self.lost += later.lost
        self.lost_learned += later.lost_learned


@dataclass
class Summary:
    """What is to be said of rows, beside what they teach.

    num_records, num_pieces: how many there were, and how many rows they became, those left out included. num_tokens,
    num_learned, longest: of all these rows, uncut. unrendered, unmade: the first fault of each kind. labels: those of the rows
    that stay.
    """

    num_records: int = 0
    num_pieces: int = 0
    num_tokens: int = 0
    num_learned: int = 0
    longest: int = 0
    tally: Tally = field(default_factory=Tally)
    unrendered: LuthierError | None = None
    unmade: LuthierError | None = None
    labels: set[str] = field(default_factory=set)

    def add(self, later: Summary) -> None:
        """Count rows that come after these."""
        self.num_records += later.num_records
        self.num_pieces += later.num_pieces
        self.num_tokens += later.num_tokens
        self.num_learned += later.num_learned
        self.longest = max(self.longest, later.longest)
        self.tally.add(later.tally)
        self.unrendered = self.unrendered or later.unrendered
        self.unmade = self.unmade or later.unmade
        self.labels |= later.labels

    def count(self, rendered: Rendered) -> None:
        """Count a row's tokens."""
        self.num_tokens += sum(text.num_own_tokens for text in rendered.texts)
        self.num_learned += rendered.num_learned
        self.longest = max(self.longest, rendered.num_tokens)

    def lengths(self, limit: int) -> RowLengths:
        """How long the rows are, and what cutting them at a limit loses; the one that they were made with."""
        tally = self.tally
        return RowLengths(
            limit,
            self.num_pieces,
            tally.count,
            self.num_tokens,
            self.num_learned,
            tally.lost,
            tally.lost_learned,
            self.longest,
        )


@dataclass
class Made:
    """The rows that stay as records and what each teaches, aligned; `document` counts pieces from the first of the run."""

    records: list[Record] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    summary: Summary = field(default_factory=Summary)


def make(records: Sequence[tuple[Record, Origin]], job: Job) -> Made:
    """What the records become. Making ends at a record that cannot be rendered."""
    made = Made()
    summary = made.summary
    for record, origin in records:
        summary.num_records += 1
        try:
            if not job.weighs:
                _refuse_weights(record, origin)
            pieces = list(job.renderer.pieces(record, job.texts, job.limit if job.splits else None, origin))
        except LuthierError as error:
            summary.unrendered = error
            break
        for piece, rendered in pieces:
            summary.count(rendered)
            kept = _within(rendered, origin, job, summary.tally)
            if kept is not None:
                _teach(piece, kept, origin, job, made)
            summary.num_pieces += 1
    return made


def _teach(piece: Record, rendered: Rendered, origin: Origin, job: Job, made: Made) -> None:
    summary = made.summary
    summary.labels.update(labels_in(piece))
    if summary.unmade is not None:
        return
    try:
        made.examples.append(job.make_example(rendered, summary.num_pieces, origin))
        made.records.append(piece)
    except LuthierError as error:
        summary.unmade = error


def _refuse_weights(record: Record, origin: Origin) -> None:
    """Raise DataError for a record that counts more or less than others, or an answer in it that does."""
    weight = next((weight for weight in _weights_in(record) if weight != 1), None)
    if weight is not None:
        raise DataError(
            f"the row has the weight {weight:g}, and the objective counts all rows and answers alike.",
            "Take the weights out, or set objective.kind to one that uses them: sft, clm, distillation, classification, "
            "regression or token-classification.",
            file=origin.file,
            line=origin.line,
            field="weight",
        )


def _weights_in(record: Record) -> Iterator[float]:
    match record:
        case Preference(chosen, rejected):
            yield from (weight for each in (chosen, rejected) for weight in _weights_in(each))
        case Ranking(answers):
            yield from (weight for each in answers for weight in _weights_in(each))
        case Verdict(answered):
            yield from _weights_in(answered)
        case Conversation(messages):
            yield record.weight
            yield from (message.weight for message in messages if message.learn is not False)
        case _ if isinstance(record, Weighed):
            yield record.weight


def labels_in(record: Record) -> tuple[str, ...]:
    """The labels that a record has: its class, or the tags of its words; none for other records."""
    if isinstance(record, Labelled):
        return (record.label,)
    return record.tags if isinstance(record, Tagged) else ()


# ── rows that are too long ──────────────────────────────────────────────────────────────────────────────────────────


def _within(rendered: Rendered, origin: Origin, job: Job, tally: Tally) -> Rendered | None:
    """The row, cut where it is too long and may be; None where it does not stay."""
    num_tokens = rendered.num_tokens
    if num_tokens <= job.limit:
        return rendered
    cut = rendered.cut(job.limit)
    own = Tally(1, origin, num_tokens, num_tokens)
    pairs = zip(rendered.texts, cut.texts, strict=True)
    own.lost = sum(whole.num_own_tokens - left.num_own_tokens for whole, left in pairs)
    own.lost_learned = rendered.num_learned - cut.num_learned
    if job.too_long == "truncate":
        if job.limit - rendered.num_closing < rendered.num_needed:
            own.halved, own.first_halved = 1, origin
        if rendered.weight_T.any() and not cut.weight_T.any():
            own.emptied, own.first_emptied = 1, origin
    tally.add(own)
    return cut if job.too_long == "truncate" else None


def said_of_long(summary: Summary, job: Job) -> list[str]:
    """What is to be said of rows that were too long. Raises: GateRefusal, with the rows' lengths."""
    try:
        return _said_of_long(summary.tally, summary.num_pieces, job)
    except GateRefusal as refusal:
        refusal.lengths = summary.lengths(job.limit)
        raise


def _said_of_long(tally: Tally, num_rows: int, job: Job) -> list[str]:
    if not tally.count:
        return []
    said = f"{counted(tally.count, 'row')} of {num_rows}, longer than data.max_length ({job.limit} tokens)"
    if job.too_long == "drop":
        return [f"Left out: {said}."]
    if job.too_long != "truncate":
        raise _refusal(
            f"The row has {tally.first_tokens} tokens, but data.max_length is {job.limit}. "
            f"{as_many(tally.count, num_rows)} The longest has {tally.longest}.",
            f"Raise data.max_length to {tally.longest} (and training.tokens_per_micro_batch to no less), "
            "or set data.too_long: truncate or drop (plain texts can be cut into pieces with split).",
            tally.first,
        )
    if tally.halved:
        raise _refusal(
            f"Cut at data.max_length ({job.limit} tokens), the row's second text is gone. {as_many(tally.halved, num_rows)}",
            "Raise data.max_length, shorten the first texts, or set data.too_long: drop.",
            tally.first_halved,
        )
    if tally.emptied:
        raise _refusal(
            f"Cut at data.max_length ({job.limit} tokens), the row's answer is gone: nothing in it would be learned. "
            f"{as_many(tally.emptied, num_rows)}",
            "Raise data.max_length, shorten the prompts, or set data.too_long: drop.",
            tally.first_emptied,
        )
    return [f"Cut at the end: {said}; {counted(tally.lost, 'token')} lost."]


def _refusal(found: str, mend: str, origin: Origin | None) -> GateRefusal:
    assert origin is not None, "what was counted has a first"
    return GateRefusal(found, mend, file=origin.file, line=origin.line)


def as_many(number: int, of: int) -> str:
    """How many rows it is so for."""
    return f"It is so for {number} of {of} rows."


def counted(number: int, noun: str) -> str:
    """So many of something."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
