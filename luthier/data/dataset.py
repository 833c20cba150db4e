"""A recipe's data as examples: read, recognised, rendered, kept within max_length, and split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from luthier.data.facts import keys_of, pieces_of
from luthier.data.mixture import Mixture, mixture_of
from luthier.data.reading import called
from luthier.data.rendering import Renderer, build_renderer
from luthier.data.sequences import joined, taken
from luthier.data.settings import DataSettings, DataSource, FormatName, Sources, files_of, is_mixture, sources_of
from luthier.data.split import num_held_out, pieces_apart, split_keys
from luthier.data.tokens.cache import KIND, TokenCache, tokenizer_key
from luthier.data.tokens.making import Job, MakeExample, counted
from luthier.data.tokens.sets import Keeping, TokenSet, Wanted, labels_before, token_set
from luthier.errors import GateRefusal
from luthier.store.cache import cache_root
from luthier.types import NO_LENGTHS, Example, Gives, Pooled, Record, RowLengths, TextsAs

Announce = Callable[[str], None]
OfLabels = Callable[[tuple[str, ...]], MakeExample]
"""What an objective over classes makes of rows, given the labels of the training rows."""


def _as_long(max_length: int) -> int:
    return max_length


@dataclass(frozen=True)
class Asked:
    """What an objective asks of rows: what they hold, and how plain texts become tokens.

    splits: whether texts that are too long are cut into pieces where the settings leave it open. longest: of data.max_length,
    the most tokens that a text may have. key: all that decides what it makes of a row beside the labels, as text; None where
    that is not known, so that what it makes is not kept. weighs: whether it has rows and answers count as they say.
    """

    takes: Gives = "text"
    texts: TextsAs = "written"
    splits: bool = False
    longest: Callable[[int], int] = _as_long
    key: str | None = None
    weighs: bool = True


@dataclass(frozen=True)
class Examples:
    """The rows of one source, or of several, as records, and what each teaches, aligned; `document` is the row's index, counted
    on from what the rows begin with.

    Those of a large set are made when they are asked for.
    reason: why the rows were taken for this form. notes: what a user should know of them. sha256: of the rows' content.
    labels: of the rows. sizes: how many rows each source has; tasks: what the sources are called, "" for files alone.
    lengths: of the rows, uncut, those that were left out included.
    """

    records: Sequence[Record]
    examples: Sequence[Example]
    format: FormatName
    reason: str
    notes: tuple[str, ...]
    sha256: str
    labels: frozenset[str] = frozenset()
    sizes: tuple[int, ...] = ()
    tasks: tuple[str, ...] = ()
    lengths: RowLengths = NO_LENGTHS


@dataclass(frozen=True)
class Dataset:
    """The rows to train on and those held out; records and examples are aligned, and those of a large set made when asked for.

    Every row has a document number of its own.

    format, reason: the form of the training rows, and why they were taken for it; of a mixture, of its first source.
    sha256: of the training rows' content, before any are held out. labels: those of the training rows likewise, each once,
    sorted. mixture: how many rows of each source an epoch takes; None where it takes all. first_held_out: the number of the
    first document held out, where those have a file of their own. lengths: of all rows, as `Examples` has them.
    """

    train: Sequence[Example]
    validation: Sequence[Example]
    train_records: Sequence[Record]
    validation_records: Sequence[Record]
    renderer: Renderer
    format: FormatName
    reason: str
    notes: tuple[str, ...]
    sha256: str
    labels: tuple[str, ...] = ()
    mixture: Mixture | None = None
    first_held_out: int = 0
    lengths: RowLengths = NO_LENGTHS


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
    pooled: which token of a text the model's head over classes reads.
    answer_start: the token that an encoder-decoder's decoder begins with; None for models of one stream.
    announce: is told the form and its reason, how many rows there are, and every note.
    Raises: DataError or RecipeError for rows, a tokenizer or a template that cannot be used; GateRefusal for rows that
    are too long; NotFound and NetworkError for sources out of reach.
    """
    renderer = build_renderer(settings, tokenizer, pooled, answer_start)
    loader = _Loader(settings, renderer, make_example, asked, announce)
    train = settings.train
    if of_labels is not None:
        loader = _of_labels(loader, of_labels)
    source = loader.load(train, settings.max_rows)
    if of_labels is not None and source.labels != frozenset(loader.labels):
        # rows that were left out had labels of their own
        loader = replace(loader, labels=in_order(source.labels), make_example=of_labels(in_order(source.labels)))
        source = loader.load(train, settings.max_rows)
    if of_labels is not None:
        _check_labels(source)
    return _split(settings, renderer, source, loader, announce)


def _of_labels(loader: _Loader, of_labels: OfLabels) -> _Loader:
    """The same for the labels of all rows that there are."""
    wanted = [loader.wanted(each, loader.settings.max_rows) for each in sources_of(loader.settings.train)]
    labels = in_order(frozenset().union(*map(labels_before, wanted)))
    return replace(loader, labels=labels, make_example=of_labels(labels))


def _split(
    settings: DataSettings, renderer: Renderer, source: Examples, loader: _Loader, announce: Announce
) -> Dataset:
    held_out: Examples | None = None
    first_held_out = 0
    train_at, validation_at = list(range(len(source.examples))), list[int]()
    sizes = source.sizes
    if settings.validation == "auto":
        fraction, is_piece_R = settings.validation_fraction, pieces_of(source.records)
        keys, num_apart = pieces_apart(keys_of(source.records), is_piece_R, fraction, source.sizes)
        train_at, validation_at = split_keys(keys, fraction, source.sizes)
        sizes = tuple(np.histogram(train_at, np.cumsum([0, *source.sizes]))[0].tolist())
        note = _split_note(len(source.records), len(validation_at), fraction, num_apart)
    elif settings.validation == "none":
        note = "No rows are held out (data.validation: none)."
    else:
        first_held_out = _after_last(source.examples, 0)
        held_out = loader.load(settings.validation, None, first_held_out)
        names = ", ".join(files_of(settings.validation))
        note = f"The {len(held_out.examples)} rows of {names} are held out."
    notes = [note]
    mixture = None
    if is_mixture(settings.train):
        mixture = mixture_of(source.tasks, sources_of(settings.train), sizes, settings.temperature)
        notes.append(mixture.note)
    for each in notes:
        announce(each)
    return Dataset(
        train=taken(source.examples, train_at) if validation_at else source.examples,
        validation=held_out.examples if held_out else taken(source.examples, validation_at),
        train_records=taken(source.records, train_at) if validation_at else source.records,
        validation_records=held_out.records if held_out else taken(source.records, validation_at),
        renderer=renderer,
        format=source.format,
        reason=source.reason,
        notes=(*source.notes, *(held_out.notes if held_out else ()), *notes),
        sha256=source.sha256,
        labels=loader.labels,
        mixture=mixture,
        first_held_out=first_held_out,
        lengths=source.lengths.joined([held_out.lengths] if held_out else []),
    )


def load_examples(
    source: Sources,
    settings: DataSettings,
    renderer: Renderer,
    make_example: MakeExample,
    announce: Announce,
    asked: Asked = Asked(),
    first_document: int = 0,
) -> Examples:
    """The rows of a source, rendered and kept within `settings.max_length`. Announces and raises as load_dataset.

    asked: what the objective asks of the rows. first_document: the number of the first of them.
    """
    return _Loader(settings, renderer, make_example, asked, announce).load(source, None, first_document)


@dataclass(frozen=True)
class _Loader:
    """All but the source that rows are loaded with. labels: those that `make_example` knows."""

    settings: DataSettings
    renderer: Renderer
    make_example: MakeExample
    asked: Asked
    announce: Announce
    labels: tuple[str, ...] = ()

    def load(self, named: Sources, max_rows: int | None, first_document: int = 0) -> Examples:
        """The rows of all sources that are named, one after another, their documents counted from a number on."""
        sources = sources_of(named)
        tasks = tuple(_task(source) if is_mixture(named) else "" for source in sources)
        sets: list[TokenSet] = []
        for source, task in zip(sources, tasks, strict=True):
            found = token_set(self.wanted(source, max_rows), self._keeping, self.announce)
            sets.append(found.placed(first_document, task or None))
            first_document += _after_last(sets[-1].examples, first_document)
        digests = [each.meta.sha256 for each in sets]
        return Examples(
            records=joined([each.records for each in sets]),
            examples=joined([each.examples for each in sets]),
            format=sets[0].meta.format,
            reason=sets[0].meta.reason,
            notes=tuple(note for each in sets for note in each.meta.notes),
            sha256=digests[0] if len(digests) == 1 else joined_sha256(digests),
            labels=frozenset(label for each in sets for label in each.meta.labels),
            sizes=tuple(len(each.examples) for each in sets),
            tasks=tasks,
            lengths=sets[0].meta.lengths.joined([each.meta.lengths for each in sets[1:]]),
        )

    def wanted(self, source: DataSource, max_rows: int | None) -> Wanted:
        """A source, and what it is to become."""
        settings, asked = self.settings, self.asked
        format, wishes = settings.form_of(source)
        splits = settings.too_long == "split" or (settings.too_long == "auto" and asked.splits)
        limit = asked.longest(settings.max_length)
        job = Job(self.renderer, self.make_example, asked.texts, limit, splits, settings.too_long, asked.weighs)
        return Wanted(source.path, format, asked.takes, wishes, max_rows, job, self._key(job))

    def _key(self, job: Job) -> list[object] | None:
        if self.asked.key is None:
            return None
        renderer, chat = self.renderer, self.renderer.chat
        day = chat.day.isoformat() if chat is not None and chat.prints_date else None
        written = [renderer.learn, renderer.completions_as, renderer.pooled, renderer.answer_start]
        template = None if chat is None else chat.source
        limits = [job.texts, job.limit, job.splits, job.too_long]
        return [tokenizer_key(renderer.tokenizer), template, day, written, limits, self.asked.key, self.labels]

    @property
    def _keeping(self) -> Keeping:
        settings = self.settings
        limit = round(settings.cache_gb * 1e9)
        return Keeping(TokenCache(cache_root() / KIND, limit) if limit else None, settings.processes)


def _after_last(examples: Sequence[Example], first_document: int) -> int:
    """How many numbers the documents of a source take: one more than its last, as rows that were left out have theirs too."""
    return examples[-1].document + 1 - first_document if examples else 0


def joined_sha256(digests: Sequence[str]) -> str:
    """The hash of several sources, one after another."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _task(source: DataSource) -> str:
    return source.task or called(source.paths[0])


def _check_labels(source: Examples) -> None:
    """Raise GateRefusal for rows that all have one label."""
    if len(source.labels) == 1:
        first = source.examples[0].origin
        raise GateRefusal(
            f"All rows have the label {next(iter(source.labels))!r}, so there is nothing to tell apart.",
            "Give rows of at least two classes.",
            file=first.file,
            line=first.line,
        )


def in_order(labels: frozenset[str]) -> tuple[str, ...]:
    """Labels, sorted: whole numbers by their size, names by their letters."""
    are_numbers = all(label.removeprefix("-").isdecimal() for label in labels)
    return tuple(sorted(labels, key=lambda label: (int(label), label) if are_numbers else (0, label)))


def _split_note(num_rows: int, held_out: int, fraction: float, num_apart: int) -> str:
    if held_out == 0 and num_held_out(num_rows, fraction) == 0:
        return f"{counted(num_rows, 'row')}: too few to hold some out, so there is no validation."
    if held_out == 0:
        return (
            f"{counted(num_rows, 'row')} with prompts that repeat too often to hold one out, so there is no validation; "
            "name a file of its own in data.validation."
        )
    texts = "1 text is" if num_apart == 1 else f"{num_apart:,} texts are"
    apart = f" {texts} too long to be held out whole, and may have pieces on both sides." if num_apart else ""
    return f"{num_rows - held_out} rows to train on; {held_out} held out, chosen by a hash of the prompt.{apart}"
