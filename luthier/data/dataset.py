"""A recipe's data as examples: read, recognised, rendered, kept within max_length, and split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from luthier.data.formats import to_records
from luthier.data.reading import Row, read_rows
from luthier.data.rendering import Renderer, build_renderer
from luthier.data.settings import DataSettings, FormatName
from luthier.data.split import num_held_out, split_rows
from luthier.errors import GateRefusal
from luthier.types import Example, Gives, Labelled, Origin, Pooled, Record, Rendered, Tagged, TextsAs

Announce = Callable[[str], None]
MakeExample = Callable[[Rendered, int, Origin], Example]
OfLabels = Callable[[tuple[str, ...]], MakeExample]
"""What an objective over classes makes of rows, given the labels of the training rows."""

ROWS_BETWEEN_WORDS = 20_000


def _as_long(max_length: int) -> int:
    return max_length


def _by_themselves(rendered: Mapping[int, Rendered], longest: int) -> Mapping[int, Rendered]:
    return rendered


@dataclass(frozen=True)
class Asked:
    """What an objective asks of rows: what they hold, and how plain texts become tokens.

    splits: whether texts that are too long are cut into pieces where the settings leave it open. longest: of data.max_length,
    the most tokens that a text may have. beside_others: gives all rows of a source, of so many tokens at most, what they need of
    each other.
    """

    takes: Gives = "text"
    texts: TextsAs = "written"
    splits: bool = False
    longest: Callable[[int], int] = _as_long
    beside_others: Callable[[Mapping[int, Rendered], int], Mapping[int, Rendered]] = _by_themselves


@dataclass(frozen=True)
class Examples:
    """The rows of one source as records, and what each teaches, aligned; `document` is the row's index in the source, counted
    on from what the source begins with.

    reason: why the rows were taken for this form. notes: what a user should know of them. sha256: of the rows' content.
    """

    records: tuple[Record, ...]
    examples: tuple[Example, ...]
    format: FormatName
    reason: str
    notes: tuple[str, ...]
    sha256: str


@dataclass(frozen=True)
class Dataset:
    """The rows to train on and those held out; records and examples are aligned. Every row has a document number of its own.

    format, reason: the form of the training rows, and why they were taken for it. sha256: of the training rows' content,
    before any are held out. labels: those of the training rows likewise, each once, sorted.
    """

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    train_records: tuple[Record, ...]
    validation_records: tuple[Record, ...]
    renderer: Renderer
    format: FormatName
    reason: str
    notes: tuple[str, ...]
    sha256: str
    labels: tuple[str, ...] = ()


def load_dataset(
    settings: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    make_example: MakeExample,
    announce: Announce,
    *,
    asked: Asked = Asked(),
    of_labels: OfLabels | None = None,
    pooled: Pooled = "last",
    answer_start: int | None = None,
) -> Dataset:
    """The data that a recipe names, ready for the gate.

    make_example: what the objective learns from a rendered row, its index and its origin.
    asked: what the objective asks of the rows.
    of_labels: where they hold labels: gives `make_example` for those that the training rows have.
    pooled: which token the model's head over classes reads.
    answer_start: the token that an encoder-decoder's decoder begins with; None for models of one stream.
    announce: is told the form and its reason, how many rows there are, and every note.
    Raises: DataError or RecipeError for rows, a tokenizer or a template that cannot be used; GateRefusal for rows that
    are too long; NotFound and NetworkError for sources out of reach.
    """
    renderer = build_renderer(settings, tokenizer, pooled, answer_start)
    rows = _read_source(settings.train, settings, renderer, announce, settings.max_rows, asked)
    labels = () if of_labels is None else _labels_of(rows)
    make_example = make_example if of_labels is None else of_labels(labels)
    source = _taught(rows, make_example)
    held_out: Examples | None = None
    train_at, validation_at = list(range(len(source.examples))), list[int]()
    if settings.validation == "auto":
        train_at, validation_at = split_rows(source.records, settings.validation_fraction)
        note = _split_note(len(source.records), len(validation_at), settings.validation_fraction)
    elif settings.validation == "none":
        note = "No rows are held out (data.validation: none)."
    else:
        first = max(rows.rendered, default=-1) + 1
        held_out = load_examples(settings.validation, settings, renderer, make_example, announce, asked, first)
        note = f"The {len(held_out.examples)} rows of {settings.validation} are held out."
    announce(note)
    return Dataset(
        train=tuple(source.examples[i] for i in train_at),
        validation=held_out.examples if held_out else tuple(source.examples[i] for i in validation_at),
        train_records=tuple(source.records[i] for i in train_at),
        validation_records=held_out.records if held_out else tuple(source.records[i] for i in validation_at),
        renderer=renderer,
        format=source.format,
        reason=source.reason,
        notes=(*source.notes, *(held_out.notes if held_out else ()), note),
        sha256=source.sha256,
        labels=labels,
    )


def load_examples(
    source: str | tuple[str, ...],
    settings: DataSettings,
    renderer: Renderer,
    make_example: MakeExample,
    announce: Announce,
    asked: Asked = Asked(),
    first_document: int = 0,
) -> Examples:
    """The rows of one source, rendered and kept within `settings.max_length`. Announces and raises as load_dataset.

    asked: what the objective asks of the rows. first_document: the number of the first of them.
    """
    return _taught(_read_source(source, settings, renderer, announce, None, asked), make_example, first_document)


@dataclass(frozen=True)
class _Source:
    """The rows of one source as tokens, by their index: what `Examples` has, before it is known what each teaches."""

    records: dict[int, Record]
    rendered: Mapping[int, Rendered]
    origins: dict[int, Origin]
    format: FormatName
    reason: str
    notes: tuple[str, ...]
    sha256: str


def _read_source(
    source: str | tuple[str, ...],
    settings: DataSettings,
    renderer: Renderer,
    announce: Announce,
    max_rows: int | None,
    asked: Asked,
) -> _Source:
    rows = read_rows(source, announce, max_rows)
    recognised = to_records(rows, settings.format, asked.takes, settings.wishes)
    name = source if isinstance(source, str) else f"{source[0]} and {len(source) - 1} more" if source[1:] else source[0]
    announce(f"{name}: {_count(len(rows), 'row')}, read as {recognised.name} ({recognised.reason.rstrip('.')}).")
    limit = asked.longest(settings.max_length)
    splits = settings.too_long == "split" or (settings.too_long == "auto" and asked.splits)
    records: list[Record] = []
    rendered: list[Rendered] = []
    origins: list[Origin] = []
    for number, (record, origin) in enumerate(recognised.records, start=1):
        for piece, tokens in renderer.pieces(record, asked.texts, limit if splits else None, origin):
            records.append(piece)
            rendered.append(tokens)
            origins.append(origin)
        if number % ROWS_BETWEEN_WORDS == 0:
            announce(f"{name}: {number:,} of {len(recognised.records):,} rows are tokens.")
    kept, notes = _within(settings, limit, rendered, origins)
    if len(records) > len(recognised.records):
        notes.append(
            f"{_count(len(recognised.records), 'text')} cut into {len(records):,} pieces of {limit:,} tokens or fewer."
        )
    for note in (*recognised.notes, *notes):
        announce(note)
    return _Source(
        records={i: records[i] for i in kept},
        rendered=asked.beside_others(kept, limit),
        origins={i: origins[i] for i in kept},
        format=recognised.name,
        reason=recognised.reason,
        notes=(*recognised.notes, *notes),
        sha256=_content_sha256(rows),
    )


def _taught(source: _Source, make_example: MakeExample, first_document: int = 0) -> Examples:
    taught = (make_example(row, first_document + i, source.origins[i]) for i, row in source.rendered.items())
    return Examples(
        records=tuple(source.records.values()),
        examples=tuple(taught),
        format=source.format,
        reason=source.reason,
        notes=source.notes,
        sha256=source.sha256,
    )


def _labels_of(source: _Source) -> tuple[str, ...]:
    """The labels of the rows, sorted: whole numbers by their size, names by their letters. Raises: GateRefusal for one."""
    labels = {label for record in source.records.values() for label in labels_in(record)}
    if len(labels) == 1:
        first = next(iter(source.origins.values()))
        raise GateRefusal(
            f"All rows have the label {next(iter(labels))!r}, so there is nothing to tell apart.",
            "Give rows of at least two classes.",
            file=first.file,
            line=first.line,
        )
    are_numbers = all(label.removeprefix("-").isdecimal() for label in labels)
    return tuple(sorted(labels, key=lambda label: (int(label), label) if are_numbers else (0, label)))


def labels_in(record: Record) -> tuple[str, ...]:
    """The labels that a record has: its class, or the tags of its words; none for other records."""
    if isinstance(record, Labelled):
        return (record.label,)
    return record.tags if isinstance(record, Tagged) else ()


# ── rows that are too long ──────────────────────────────────────────────────────────────────────────────────────────


def _within(
    settings: DataSettings, longest_allowed: int, rendered: Sequence[Rendered], origins: Sequence[Origin]
) -> tuple[dict[int, Rendered], list[str]]:
    """The rows of so many tokens at most, by their index, and what is to be said of the others. Raises: GateRefusal."""
    too_long = [i for i, row in enumerate(rendered) if row.num_tokens > longest_allowed]
    kept = dict(enumerate(rendered))
    if not too_long:
        return kept, []
    said = f"{_count(len(too_long), 'row')} of {len(rendered)}, longer than data.max_length ({longest_allowed} tokens)"
    if settings.too_long in ("auto", "refuse", "split"):
        raise _too_long(rendered, origins, too_long, longest_allowed)
    if settings.too_long == "drop":
        for i in too_long:
            del kept[i]
        return kept, [f"Left out: {said}."]
    for i in too_long:
        kept[i] = rendered[i].cut(longest_allowed)
    halved = [i for i in too_long if longest_allowed - rendered[i].num_closing < rendered[i].num_needed]
    if halved:
        first = halved[0]
        raise GateRefusal(
            f"Cut at data.max_length ({longest_allowed} tokens), the row's second text is gone. "
            f"{_as_many(len(halved), len(rendered))}",
            "Raise data.max_length, shorten the first texts, or set data.too_long: drop.",
            file=origins[first].file,
            line=origins[first].line,
        )
    emptied = [i for i in too_long if rendered[i].weight_T.any() and not kept[i].weight_T.any()]
    if emptied:
        first = emptied[0]
        raise GateRefusal(
            f"Cut at data.max_length ({longest_allowed} tokens), the row's answer is gone: nothing in it would be learned. "
            f"{_as_many(len(emptied), len(rendered))}",
            "Raise data.max_length, shorten the prompts, or set data.too_long: drop.",
            file=origins[first].file,
            line=origins[first].line,
        )
    num_lost = sum(rendered[i].num_tokens - kept[i].num_tokens for i in too_long)
    return kept, [f"Cut at the end: {said}; {_count(num_lost, 'token')} lost."]


def _too_long(
    rendered: Sequence[Rendered], origins: Sequence[Origin], too_long: Sequence[int], longest_allowed: int
) -> GateRefusal:
    first = too_long[0]
    longest = max(rendered[i].num_tokens for i in too_long)
    return GateRefusal(
        f"The row has {rendered[first].num_tokens} tokens, but data.max_length is {longest_allowed}. "
        f"{_as_many(len(too_long), len(rendered))} The longest has {longest}.",
        f"Raise data.max_length to {longest} (and training.tokens_per_micro_batch to no less), "
        "or set data.too_long: truncate or drop (plain texts can be cut into pieces with split).",
        file=origins[first].file,
        line=origins[first].line,
    )


# ── words and hashes ────────────────────────────────────────────────────────────────────────────────────────────────


def _split_note(num_rows: int, held_out: int, fraction: float) -> str:
    if held_out == 0 and num_held_out(num_rows, fraction) == 0:
        return f"{_count(num_rows, 'row')}: too few to hold some out, so there is no validation."
    if held_out == 0:
        return (
            f"{_count(num_rows, 'row')} with prompts that repeat too often to hold one out, so there is no validation; "
            "name a file of its own in data.validation."
        )
    return f"{num_rows - held_out} rows to train on; {held_out} held out, chosen by a hash of the prompt."


def _as_many(number: int, of: int) -> str:
    return f"It is so for {number} of {of} rows."


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _content_sha256(rows: Iterable[Row]) -> str:
    """The hash of the rows' values in order; the same rows hash the same from any file or folder."""
    digest = hashlib.sha256()
    for row in rows:
        # default=str: Parquet may hold dates and bytes, which JSON has not
        digest.update(json.dumps(row.values, sort_keys=True, default=str).encode())
        digest.update(b"\n")
    return digest.hexdigest()
