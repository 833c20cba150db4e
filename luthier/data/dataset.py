"""A recipe's data as examples: read, recognised, rendered, kept within max_length, and split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from luthier.data.formats import to_records
from luthier.data.reading import Row, read_rows
from luthier.data.rendering import Renderer, build_renderer
from luthier.data.settings import DataSettings, FormatName
from luthier.data.split import split_rows
from luthier.errors import GateRefusal
from luthier.types import Example, Origin, Record, Rendered

Announce = Callable[[str], None]
MakeExample = Callable[[Rendered, int, Origin], Example]

ROWS_BETWEEN_WORDS = 20_000


@dataclass(frozen=True)
class Examples:
    """The rows of one source as records, and what each teaches, aligned; `document` is the row's index in the source.

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
    """The rows to train on and those held out; records and examples are aligned.

    format, reason: the form of the training rows, and why they were taken for it. sha256: of the training rows' content,
    before any are held out.
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


def load_dataset(
    settings: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    make_example: MakeExample,
    announce: Announce,
    answer_start: int | None = None,
) -> Dataset:
    """The data that a recipe names, ready for the gate.

    make_example: what the objective learns from a rendered row, its index and its origin.
    answer_start: the token that an encoder-decoder's decoder begins with; None for models of one stream.
    announce: is told the form and its reason, how many rows there are, and every note.
    Raises: DataError or RecipeError for rows, a tokenizer or a template that cannot be used; GateRefusal for rows that
    are too long; NotFound and NetworkError for sources out of reach.
    """
    renderer = build_renderer(settings, tokenizer, answer_start)
    source = load_examples(settings.train, settings, renderer, make_example, announce, settings.max_rows)
    held_out: Examples | None = None
    train_at, validation_at = list(range(len(source.examples))), list[int]()
    if settings.validation == "auto":
        train_at, validation_at = split_rows(source.records, settings.validation_fraction)
        note = _split_note(len(source.records), len(validation_at))
    elif settings.validation == "none":
        note = "No rows are held out (data.validation: none)."
    else:
        held_out = load_examples(settings.validation, settings, renderer, make_example, announce)
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
    )


def load_examples(
    source: str | tuple[str, ...],
    settings: DataSettings,
    renderer: Renderer,
    make_example: MakeExample,
    announce: Announce,
    max_rows: int | None = None,
) -> Examples:
    """The rows of one source, rendered and kept within `settings.max_length`. Announces and raises as load_dataset."""
    rows = read_rows(source, announce, max_rows)
    recognised = to_records(rows, settings.format)
    name = source if isinstance(source, str) else f"{source[0]} and {len(source) - 1} more" if source[1:] else source[0]
    announce(f"{name}: {_count(len(rows), 'row')}, read as {recognised.name} ({recognised.reason.rstrip('.')}).")
    rendered: list[Rendered] = []
    for record, origin in recognised.records:
        rendered.append(renderer.render(record, origin))
        if len(rendered) % ROWS_BETWEEN_WORDS == 0:
            announce(f"{name}: {len(rendered):,} of {len(rows):,} rows are tokens.")
    origins = [origin for _, origin in recognised.records]
    kept, notes = _within(settings, rendered, origins)
    for note in (*recognised.notes, *notes):
        announce(note)
    return Examples(
        records=tuple(recognised.records[i][0] for i in kept),
        examples=tuple(make_example(row, i, origins[i]) for i, row in kept.items()),
        format=recognised.name,
        reason=recognised.reason,
        notes=(*recognised.notes, *notes),
        sha256=_content_sha256(rows),
    )


# ── rows that are too long ──────────────────────────────────────────────────────────────────────────────────────────


def _within(
    settings: DataSettings, rendered: Sequence[Rendered], origins: Sequence[Origin]
) -> tuple[dict[int, Rendered], list[str]]:
    """The rows within max_length by their index, and what is to be said of the others. Raises: GateRefusal."""
    longest_allowed = settings.max_length
    too_long = [i for i, row in enumerate(rendered) if row.num_tokens > longest_allowed]
    kept = dict(enumerate(rendered))
    if not too_long:
        return kept, []
    said = f"{_count(len(too_long), 'row')} of {len(rendered)}, longer than data.max_length ({longest_allowed} tokens)"
    if settings.too_long == "refuse":
        raise _too_long(rendered, origins, too_long, longest_allowed)
    if settings.too_long == "drop":
        for i in too_long:
            del kept[i]
        return kept, [f"Left out: {said}."]
    for i in too_long:
        kept[i] = _cut(rendered[i], longest_allowed)
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


def _cut(row: Rendered, length: int) -> Rendered:
    """A row cut at its end; of a source and its answer the source, before its own last token, while one is left of it."""
    if row.source_S is None:
        return Rendered(row.tokens_T[:length], row.weight_T[:length])
    room = max(length - len(row.tokens_T), min(2, len(row.source_S)))
    source_S = np.concatenate([row.source_S[: room - 1], row.source_S[-1:]])
    answer = max(1, length - len(source_S))
    return Rendered(row.tokens_T[:answer], row.weight_T[:answer], source_S)


def _too_long(
    rendered: Sequence[Rendered], origins: Sequence[Origin], too_long: Sequence[int], longest_allowed: int
) -> GateRefusal:
    first = too_long[0]
    longest = max(rendered[i].num_tokens for i in too_long)
    return GateRefusal(
        f"The row has {rendered[first].num_tokens} tokens, but data.max_length is {longest_allowed}. "
        f"{_as_many(len(too_long), len(rendered))} The longest has {longest}.",
        f"Raise data.max_length to {longest} (and training.tokens_per_micro_batch to no less), "
        "or set data.too_long: truncate or drop.",
        file=origins[first].file,
        line=origins[first].line,
    )


# ── words and hashes ────────────────────────────────────────────────────────────────────────────────────────────────


def _split_note(num_rows: int, num_held_out: int) -> str:
    if num_held_out == 0:
        return f"{_count(num_rows, 'row')}: too few to hold some out, so there is no validation."
    return f"{num_rows - num_held_out} rows to train on; {num_held_out} held out, chosen by a hash of the prompt."


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
