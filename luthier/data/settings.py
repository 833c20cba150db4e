"""What a recipe says about data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from luthier.types import Gives, Settings, fault_at

FormatName = Literal[
    "auto",
    "chat",
    "completion",
    "alpaca",
    "sharegpt",
    "text",
    "classification",
    "oasst",
    "guanaco",
    "hh-rlhf",
    "preferences",
    "rankings",
    "verdicts",
    "prompts",
    "tags",
    "choices",
    "rationale",
    "sql",
    "summary",
    "qa",
    "data-to-text",
    "fields",
    "scores",
    "similar",
    "template",
]

BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
"""What braces may be in a template: {{ and }} for themselves, {column}; a lone one is a mistake."""

MADE_OF: tuple[tuple[tuple[str, ...], tuple[str, ...], Gives], ...] = (
    (("prompt",), (), "prompts"),
    (("prompt", "completion"), ("weight",), "text"),
    (("user", "assistant"), ("system", "weight"), "text"),
    (("text",), ("weight",), "text"),
    (("text", "label"), ("text_pair", "weight"), "labels"),
    (("text", "score"), ("text_pair", "weight"), "scores"),
    (("prompt", "chosen", "rejected"), (), "preferences"),
    (("prompt", "completion", "verdict"), (), "verdicts"),
    (("question", "options", "answer"), (), "choices"),
    (("anchor", "positive"), ("negative",), "similar"),
    (("tokens", "tags"), (), "tags"),
    (("prompt", "answers", "ranks"), (), "rankings"),
    (("prompt", "answers", "scores"), (), "rankings"),
)
"""The fields that a template may have together, those that may stand beside them, and what it then gives."""


class RowTemplate(Settings):
    """How columns become what is learned: text with {column} in it, under the names of one kind of row."""

    prompt: str | None = Field(
        None,
        description="What is asked; with completion, with completion and verdict, with chosen and rejected, or with answers.",
    )
    completion: str | None = Field(None, description="What should follow the prompt; learned.")
    system: str | None = Field(None, description="The system's message, before that of the user.")
    user: str | None = Field(None, description="The user's message; with assistant.")
    assistant: str | None = Field(None, description="The assistant's answer; learned.")
    text: str | None = Field(None, description="Text learned as a whole; with label or score, the text that has it.")
    text_pair: str | None = Field(None, description="The second text of a pair that has a label or a score.")
    label: str | None = Field(None, description="The class of the text.")
    score: str | None = Field(None, description="The number of the text.")
    weight: str | None = Field(None, description="How much the row counts in the loss: a number of 0 or more.")
    chosen: str | None = Field(None, description="The better answer to the prompt.")
    rejected: str | None = Field(None, description="The worse answer to the prompt.")
    verdict: str | None = Field(
        None, description="Whether the completion is a good one: true or false, yes or no, good or bad, 1 or 0 (or -1)."
    )
    question: str | None = Field(None, description="What is asked, for rows of options.")
    options: str | tuple[str, ...] | None = Field(
        None, description="The options: a list of texts, one each, or the one column that lists them."
    )
    answer: str | None = Field(
        None,
        description="The right option: its text, its letter, or its number, counted from 0 or from 1 as the rows show.",
    )
    anchor: str | None = Field(None, description="A text, for rows of texts that mean the same.")
    positive: str | None = Field(None, description="A text that means the same as the anchor.")
    negative: str | None = Field(None, description="A text that does not.")
    tokens: str | None = Field(None, description="The one column that lists the words; with tags.")
    tags: str | None = Field(None, description="The one column that lists a tag for each word.")
    answers: str | tuple[str, ...] | None = Field(
        None, description="Several answers to the prompt: a list of texts, one each, or the one column that lists them."
    )
    ranks: str | tuple[str, ...] | None = Field(
        None,
        description="The place of each answer, 1 being the best: a number each, or the one column that lists them.",
    )
    scores: str | tuple[str, ...] | None = Field(None, description="The same as numbers that rise to the best.")

    @model_validator(mode="after")
    def _is_one_kind_of_row(self) -> Self:
        given = set(self.filled)
        if not any(set(needed) <= given <= {*needed, *beside} for needed, beside, _ in MADE_OF):
            kinds = "; ".join(" and ".join(needed) for needed, _, _ in MADE_OF)
            raise fault_at(
                "data.template",
                f"data.template has {', '.join(self.filled) or 'nothing'}, which is no kind of row; give {kinds}.",
            )
        for name, text in self._texts:
            lone = next((part[0] for part in BRACES.finditer(text) if part[0] in ("{", "}")), None)
            if lone is not None:
                raise fault_at(
                    f"data.template.{name}",
                    f"In data.template.{name} a {lone} stands alone; write {{column}} for a column, and {lone * 2} for a {lone}.",
                )
        if not any(True for _ in self.columns):
            raise fault_at("data.template", "data.template names no column; write {column} where its value should go.")
        return self

    @property
    def filled(self) -> dict[str, str | tuple[str, ...]]:
        """The fields that are given, by name."""
        return {name: text for name, text in self if text is not None}

    @property
    def _texts(self) -> Iterator[tuple[str, str]]:
        """Each text that is given, under the name of its field."""
        for name, text in self.filled.items():
            yield from ((name, each) for each in ((text,) if isinstance(text, str) else text))

    @property
    def columns(self) -> Iterator[tuple[str, str]]:
        """Each column that is named, after the field that names it."""
        for name, text in self._texts:
            for part in BRACES.finditer(text):
                if part[1] is not None:
                    yield name, part[1].strip()

    @property
    def gives(self) -> Gives:
        """What the rows become."""
        given = set(self.filled)
        return next(gives for needed, beside, gives in MADE_OF if set(needed) <= given <= {*needed, *beside})


@dataclass(frozen=True)
class Wishes:
    """What a recipe wishes of rows that can be read in several ways; see the fields of `DataSettings`."""

    template: RowTemplate | None = None
    rationale: Literal["learn", "leave_out"] = "learn"
    threads: Literal["best", "all"] = "best"


NO_WISHES = Wishes()


class DataSource(Settings):
    """One source of a mixture: where its rows are, which task they are, and how many of them an epoch takes."""

    path: str | tuple[str, ...] = Field(
        description="Its rows: a file, a folder, a pattern, a hub name, or a list of these."
    )
    task: str | None = Field(
        None, min_length=1, description="What its rows are called in losses and reports; unset: after its file."
    )
    weight: float | None = Field(
        None, gt=0, description="Its share of the rows of an epoch, beside the weights of the other sources."
    )
    max_rows: int | None = Field(
        None,
        ge=1,
        description="Most of its training rows that one epoch takes; each epoch goes on where the last one ended.",
    )
    format: FormatName | None = Field(None, description="Form of its rows; unset: data.format.")
    template: RowTemplate | None = Field(None, description="Makes its rows of any columns; unset: data.template.")

    @model_validator(mode="after")
    def _format_and_template_agree(self) -> Self:
        _check_form(self.format or "auto", self.template, "a source")
        return self

    @property
    def paths(self) -> tuple[str, ...]:
        """The files, folders or hub names."""
        return (self.path,) if isinstance(self.path, str) else self.path


Sources = str | tuple[str | DataSource, ...]
"""Rows as a recipe names them: a file, a list of files, or the sources of a mixture."""


def _check_form(format: FormatName, template: RowTemplate | None, whose: str) -> None:
    if template is not None and format not in ("auto", "template"):
        raise fault_at(
            "data.format",
            f"{whose}.format is {format}, but {whose}.template says how the rows are read; take one of them out.",
        )
    if template is None and format == "template":
        raise fault_at(
            "data.format",
            f'{whose}.format is template, but there is none; give {whose}.template, such as {{prompt: "{{question}}\\n", completion: "{{answer}}"}}.',
        )


def sources_of(named: Sources) -> tuple[DataSource, ...]:
    """The sources that are named; files alone are one."""
    if isinstance(named, str):
        return (DataSource(path=named),)
    files = tuple(each for each in named if isinstance(each, str))
    if len(files) == len(named):
        return (DataSource(path=files),)
    return tuple(DataSource(path=each) if isinstance(each, str) else each for each in named)


def is_mixture(named: Sources) -> bool:
    """Whether the sources are tasks of their own."""
    return not isinstance(named, str) and any(isinstance(each, DataSource) for each in named)


def files_of(named: Sources) -> tuple[str, ...]:
    """All files, folders and hub names of the sources."""
    return tuple(path for source in sources_of(named) for path in source.paths)


class DataSettings(Settings):
    """Where the rows are, how they are read, and what of them is learned."""

    train: Sources = Field(
        description="Training rows: a file (JSONL, JSON, CSV, Parquet, CoNLL, text; also packed), a folder, a pattern such as data/*.jsonl, or a hub name (owner/set, owner/set:configuration:split); a list of these; or a mixture: a list of sources {path, task, weight, max_rows, format, template}.",
    )
    temperature: float = Field(
        1.0,
        ge=1,
        description="T of a mixture: a source of n rows counts n^(1/T) in an epoch, so that 1 takes each row once and more evens sources out; their weights go first.",
    )
    validation: Sources = Field(
        "auto",
        description="Held-out rows: 'auto' splits some off the training rows by a hash of the prompt, 'none' holds out nothing, anything else is a file, a list of them, or a list of sources.",
    )
    validation_fraction: float = Field(
        0.05,
        gt=0,
        le=0.2,
        description="Share of the training rows that 'auto' holds out; at least 16 and at most 500 rows, never more than a fifth.",
    )
    format: FormatName = Field("auto", description="Form of the rows; 'auto' recognises it by content and says why.")
    template: RowTemplate | None = Field(
        None,
        description='Makes rows of any columns, such as {prompt: "Q: {question}\\n", completion: "{answer}"}; {{ and }} stand for braces themselves.',
    )
    rationale: Literal["learn", "leave_out"] = Field(
        "learn",
        description="For rows with a rationale: learn it, with the answer after it, or leave it out and learn the answer alone.",
    )
    threads: Literal["best", "all"] = Field(
        "best",
        description="For trees of messages: one thread a tree, along the best-ranked replies, or all threads, each answer learned once.",
    )
    max_length: int = Field(
        1024, ge=8, description="Longest row in tokens; for an encoder-decoder, prompt and answer together."
    )
    too_long: Literal["auto", "refuse", "truncate", "drop", "split"] = Field(
        "auto",
        description="What happens to rows longer than max_length: refuse to train, cut their end off, leave them out, or split plain texts into pieces; 'auto' splits for the objectives of pre-training and refuses for others.",
    )
    learn: Literal["answers", "last_answer", "all"] = Field(
        "answers",
        description="Which tokens are learned: all answers, only the last one, or every token. A message's own weight goes first: 0 leaves it out, any other learns it by so much.",
    )
    render: Literal["auto", "chat", "plain"] = Field(
        "auto",
        description="How prompt/completion rows become tokens: through the chat template, or as plain concatenation; 'auto' uses the template where the model has one.",
    )
    chat_template: str | None = Field(
        None,
        description="How chats are written: alpaca, guanaco, chatml, a Jinja template, or the path of a file that holds one; replaces the model's own.",
    )
    today: str | None = Field(
        None,
        description="The date that a chat template prints as today's, such as 2026-01-31; unset, and where a template prints one: the day on which the run begins, also later with its model.",
    )
    max_rows: int | None = Field(None, ge=1, description="Use only the first so many training rows.")
    processes: int | Literal["auto"] = Field(
        "auto",
        description="How many processes make tokens of a large set; 'auto' is one for each core, up to 8. Small sets are made in the process itself.",
    )
    cache_gb: float = Field(
        20.0,
        ge=0,
        description="Gigabytes of disk that the tokens of large sets may take in the cache, so that the next run begins at once; the sets used least recently go first. 0 keeps none.",
    )

    @field_validator("processes")
    @classmethod
    def _processes_are_there(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError(f"data.processes is {value}; give 1 or more, or auto.")
        return value

    @field_validator("train", "validation")
    @classmethod
    def _sources_are_there(cls, value: Sources) -> Sources:
        if not isinstance(value, str) and not value:
            raise ValueError("The list of data files is empty; give at least one.")
        return value

    @field_validator("today")
    @classmethod
    def _today_is_a_day(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                date.fromisoformat(value)
            except ValueError:
                raise ValueError(f"data.today is {value!r}; give a day such as 2026-01-31.") from None
        return value

    @model_validator(mode="after")
    def _format_and_template_agree(self) -> Self:
        _check_form(self.format, self.template, "data")
        return self

    @model_validator(mode="after")
    def _mixture_is_whole(self) -> Self:
        weighted = [source.weight is not None for source in sources_of(self.train)]
        if any(weighted) and not all(weighted):
            raise fault_at("data.train", "Some sources of data.train have a weight and some have none; give it to all.")
        if any(weighted) and self.temperature != 1:
            raise fault_at(
                "data.temperature", "Weights say what an epoch takes of each source; take data.temperature or them out."
            )
        if not is_mixture(self.train) and self.temperature != 1:
            raise fault_at(
                "data.temperature",
                "data.temperature is for a mixture; write data.train as a list of sources, such as {path: a.jsonl}.",
            )
        if is_mixture(self.train) and self.max_rows is not None:
            raise fault_at("data.max_rows", "data.train is a mixture; set max_rows of its sources instead.")
        return self

    @property
    def wishes(self) -> Wishes:
        """What is wished of rows that can be read in several ways."""
        return Wishes(self.template, self.rationale, self.threads)

    def form_of(self, source: DataSource) -> tuple[FormatName, Wishes]:
        """How the rows of a source are read."""
        if source.format is None and source.template is None:
            return self.format, self.wishes
        return source.format or "auto", Wishes(source.template, self.rationale, self.threads)

    @property
    def day(self) -> date:
        """The day that chat templates print."""
        return date.today() if self.today is None else date.fromisoformat(self.today)
