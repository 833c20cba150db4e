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
    "verdicts",
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
    (("prompt", "completion"), (), "text"),
    (("user", "assistant"), ("system",), "text"),
    (("text",), (), "text"),
    (("text", "label"), ("text_pair",), "labels"),
    (("text", "score"), ("text_pair",), "scores"),
    (("prompt", "chosen", "rejected"), (), "preferences"),
    (("anchor", "positive"), ("negative",), "similar"),
)
"""The fields that a template may have together, those that may stand beside them, and what it then gives."""


class RowTemplate(Settings):
    """How columns become what is learned: text with {column} in it, under the names of one kind of row."""

    prompt: str | None = Field(None, description="What is asked; with completion, or with chosen and rejected.")
    completion: str | None = Field(None, description="What should follow the prompt; learned.")
    system: str | None = Field(None, description="The system's message, before that of the user.")
    user: str | None = Field(None, description="The user's message; with assistant.")
    assistant: str | None = Field(None, description="The assistant's answer; learned.")
    text: str | None = Field(None, description="Text learned as a whole; with label or score, the text that has it.")
    text_pair: str | None = Field(None, description="The second text of a pair that has a label or a score.")
    label: str | None = Field(None, description="The class of the text.")
    score: str | None = Field(None, description="The number of the text.")
    chosen: str | None = Field(None, description="The better answer to the prompt.")
    rejected: str | None = Field(None, description="The worse answer to the prompt.")
    anchor: str | None = Field(None, description="A text, for rows of texts that mean the same.")
    positive: str | None = Field(None, description="A text that means the same as the anchor.")
    negative: str | None = Field(None, description="A text that does not.")

    @model_validator(mode="after")
    def _is_one_kind_of_row(self) -> Self:
        given = set(self.filled)
        if not any(set(needed) <= given <= {*needed, *beside} for needed, beside, _ in MADE_OF):
            kinds = "; ".join(" and ".join(needed) for needed, _, _ in MADE_OF)
            raise fault_at(
                "data.template",
                f"data.template has {', '.join(self.filled) or 'nothing'}, which is no kind of row; give {kinds}.",
            )
        for name, text in self.filled.items():
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
    def filled(self) -> dict[str, str]:
        """The fields that are given, by name."""
        return {name: text for name, text in self if text is not None}

    @property
    def columns(self) -> Iterator[tuple[str, str]]:
        """Each column that is named, after the field that names it."""
        for name, text in self.filled.items():
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


class DataSettings(Settings):
    """Where the rows are, how they are read, and what of them is learned."""

    train: str | tuple[str, ...] = Field(
        description="Training rows: a JSONL, JSON, CSV or Parquet file, a list of them, or a hub name such as owner/set.",
    )
    validation: str = Field(
        "auto",
        description="Held-out rows: 'auto' splits some off the training rows by a hash of the prompt, 'none' holds out nothing, anything else is a file.",
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
        description="Which tokens are learned: all answers, only the last one, or every token. A message's own weight 0 or 1 goes first.",
    )
    render: Literal["auto", "chat", "plain"] = Field(
        "auto",
        description="How prompt/completion rows become tokens: through the chat template, or as plain concatenation; 'auto' uses the template where the model has one.",
    )
    chat_template: str | None = Field(
        None,
        description="A Jinja chat template, or the path of a file that holds one; replaces the model's own.",
    )
    today: str | None = Field(
        None,
        description="The date that a chat template prints as today's, such as 2026-01-31; unset, and where a template prints one: the day on which the run begins, also later with its model.",
    )
    max_rows: int | None = Field(None, ge=1, description="Use only the first so many training rows.")

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
        if self.template is not None and self.format not in ("auto", "template"):
            raise fault_at(
                "data.format",
                f"data.format is {self.format}, but data.template says how the rows are read; take one of them out.",
            )
        if self.template is None and self.format == "template":
            raise fault_at(
                "data.format",
                'data.format is template, but there is none; give data.template, such as {prompt: "{question}\\n", completion: "{answer}"}.',
            )
        return self

    @property
    def wishes(self) -> Wishes:
        """What is wished of rows that can be read in several ways."""
        return Wishes(self.template, self.rationale, self.threads)

    @property
    def day(self) -> date:
        """The day that chat templates print."""
        return date.today() if self.today is None else date.fromisoformat(self.today)
