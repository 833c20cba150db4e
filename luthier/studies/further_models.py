"""Models that are measured beside a run on the same rows, and why one cannot stand there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.data.rendering import Renderer
from luthier.errors import UsageError
from luthier.evaluation.candidates import Candidate
from luthier.evaluation.compare import questions_of
from luthier.prediction.contract import Reader
from luthier.prediction.embedder import Embedder
from luthier.prediction.filler import Filler
from luthier.prediction.text_model import TextModel
from luthier.types import Completion, Conversation, Labelled, Origin, PlainText, Pooled, Record

Records = Sequence[tuple[Record, Origin]]
"""Rows, each with where it stands."""


@dataclass(frozen=True)
class Further:
    """A further model under its name, and the folder of the run that trained it; None: it is of no run."""

    name: str
    model: TextModel | Reader
    run: Path | None


Others = Sequence[Further]


def further_writers(others: Others, tuned: TextModel, records: Records) -> list[Candidate]:
    """The further models that write. records: the rows that are measured. Raises: UsageError for one that is asked in other tokens."""
    found = []
    for name, model in ((each.name, each.model) for each in others):
        if not isinstance(model, TextModel) or not _read_alike(records, model.renderer, tuned.renderer):
            raise UsageError(
                f"{name} makes other tokens of a prompt, or none: its answers would be to different questions.",
                "Compare runs of one tokenizer and one chat template that learned to write.",
            )
        found.append(Candidate(name, model.language_model, model.adapter))
    return found


def _read_alike(records: Records, one: Renderer, other: Renderer) -> bool:
    """Whether two models are asked the same tokens: by these rows where they are answered, else by any text and any question."""
    if all(isinstance(record, Conversation | Completion) for record, _ in records):
        return questions_of(records, one) == questions_of(records, other)
    asked = Completion("?", "")
    is_one_vocabulary = one.tokenizer.get_vocab() == other.tokenizer.get_vocab()
    return is_one_vocabulary and one.record_prompt(asked) == other.record_prompt(asked)


def further_readers(others: Others, tuned: Reader, records: Records) -> list[Candidate]:
    """The further models that do the same. records: the rows that are measured.

    Raises: UsageError for any other model, and for one that reads the rows otherwise.
    """
    classes = tuned.language_model.classes
    these = f", with the classes {', '.join(classes)}" if len(classes) > 1 else ""
    same = ", with the same classes in the same order" if these else ""
    found = []
    for name, model in ((each.name, each.model) for each in others):
        if not isinstance(model, type(tuned)) or model.language_model.classes != classes:
            raise UsageError(
                f"{name} is no model that {tuned.does}{these}: it cannot stand beside one that is.",
                f"Name runs that learned the same{same}.",
            )
        _check_pools_alike(name, model, tuned)
        if not _are_read_alike(records, model, tuned):
            raise UsageError(
                f"{name} makes other tokens of a text: it would be measured on different rows.",
                "Compare runs of one tokenizer and one chat template.",
            )
        found.append(Candidate(name, model.language_model, model.adapter))
    return found


def _check_pools_alike(name: str, one: Reader, other: Reader) -> None:
    """Raise UsageError for models whose vectors are of other tokens of a text."""
    if isinstance(one, Embedder) and isinstance(other, Embedder) and one.objective.pooling != other.objective.pooling:
        raise UsageError(
            f"{name} learned with objective.pooling {one.objective.pooling}, and the rows are pooled as {other.objective.pooling} has it.",
            "Compare runs of one objective.pooling.",
        )


def _are_read_alike(records: Records, one: Reader, other: Reader) -> bool:
    """Whether two models read the same tokens of the rows; and, where tokens are what is told, know the same ones."""
    if isinstance(other, Filler) and one.renderer.tokenizer.get_vocab() != other.renderer.tokenizer.get_vocab():
        return False
    return _read_as(records, one.renderer) == _read_as(records, other.renderer)


def _read_as(records: Records, renderer: Renderer) -> list[list[tuple[list[int], Pooled]]]:
    """Of each row's texts the tokens, and at which of them the head reads."""
    return [
        [(text.tokens_T.tolist(), text.pooled) for text in (rendered, *rendered.beside)]
        for rendered in (renderer.render(_whole(record), origin) for record, origin in records)
    ]


def _whole(record: Record) -> Record:
    """A record as models that read have it: a plain text is read as a whole."""
    return Labelled(record.text, None, "") if isinstance(record, PlainText) else record
