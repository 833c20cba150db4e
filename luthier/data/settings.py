"""What a recipe says about data."""

from __future__ import annotations

from datetime import date
from typing import Literal

from pydantic import Field, field_validator

from luthier.types import Settings

FormatName = Literal["auto", "chat", "completion", "alpaca", "sharegpt", "text", "classification"]


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

    @property
    def day(self) -> date:
        """The day that chat templates print."""
        return date.today() if self.today is None else date.fromisoformat(self.today)
