"""A score or a label that a model is asked for.

The model is told to end with its verdict alone on the last line, which is read by a plain rule: no part of the answer that is
judged can be taken for it unless the judge repeats it there.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from luthier.evaluation.grading.contract import Aids, Grade, Grader, Item, JudgeSampling, Sample
from luthier.evaluation.grading.templates import Missing, Template, filled
from luthier.types import Message, Settings, fault_at

_TEXTS = ("input_text", "output_text", "text")
"""The types of parts of a message that are texts."""
_DIGITS = r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)"
_NUMBER = re.compile(_DIGITS)
_SHARE = re.compile(rf"({_DIGITS})[\s*_`]*(?:/|\bout\s+of\b|\bof\b)[\s*_`]*({_DIGITS})", re.IGNORECASE)
"""A number of another, such as 8/10 or 8 out of 10."""


def closing_with(labels: Sequence[str]) -> str:
    """How a judge is told to end with one of these labels."""
    return f"End with a last line that holds nothing but one of: {', '.join(labels)}."


def last_label(said: str, labels: Sequence[str]) -> str | None:
    """The label that the last line with words is, or ends with; of two that fit, the longer one. None: it gives none of them."""
    last = last_line(said).casefold()
    fitting = [label for label in labels if re.search(rf"(?<!\w){re.escape(label.casefold())}\Z", last)]
    return max(fitting, key=len, default=None)


def last_line(said: str) -> str:
    """The last line with words, without signs at its ends; empty where there is none."""
    lines = (line.strip(" \t.*_`\"'") for line in reversed(said.splitlines()))
    return next((line for line in lines if line), "")


class Turn(Settings):
    """One message of what the judge is asked; its content may have places for the row and the answer."""

    type: Literal["message"] = Field("message", description="What it is, as OpenAI's service writes it.")
    role: Literal["system", "developer", "user", "assistant"] = Field("user", description="Who speaks.")
    content: Template = Field(description="What is said: a text, or OpenAI's parts of it that are texts.")

    @field_validator("content", mode="before")
    @classmethod
    def _of_parts(cls, value: Any) -> Any:
        """A text, or parts `{"type": "input_text", "text": …}`, as one text, each part on a line of its own."""
        if isinstance(value, str):
            return value
        parts = [value] if isinstance(value, Mapping) else value
        return "\n".join(map(_text_of, parts)) if isinstance(parts, list | tuple) and parts else value


def _text_of(part: Any) -> str:
    """The text of a part. Raises: ValueError for a picture, a sound, or what is no part."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    text = part.get("text") if kind in _TEXTS else None
    if not isinstance(text, str):
        raise ValueError(f"holds a part of the type {kind!r}, and a judge here is given texts alone")
    return text


class ModelGrader(Grader):
    """What graders by a model share: what it is asked, and how it draws."""

    input: tuple[Turn, ...] = Field(min_length=1, description="The chat that the model is given.")
    model: str | None = Field(
        None,
        description="The judge's name at an endpoint, where the caller names none; a judge that is named is asked instead.",
    )
    sampling_params: JudgeSampling = Field(JudgeSampling(), description="How the judge draws its answers.")

    @property
    def asked_models(self) -> tuple[str | None, ...]:
        """The one that judges."""
        return (self.model,)

    @property
    @abstractmethod
    def closing(self) -> str:
        """How the judge is told to end."""

    @abstractmethod
    def read(self, said: str) -> Grade:
        """The grade in what the judge said."""

    def grade(self, sample: Sample, item: Item) -> Grade:
        """Without a model there is no grade."""
        return Grade(None, "there is no model to ask", is_unjudged=True)

    def grade_all(self, samples: Sequence[Sample], items: Sequence[Item], aids: Aids) -> list[Grade]:
        """Ask the model about all answers at once."""
        if aids.ask is None:
            return [self.grade(sample, item) for sample, item in zip(samples, items, strict=True)]
        grades: list[Grade | None] = []
        asked = []
        for sample, item in zip(samples, items, strict=True):
            try:
                asked.append(self._chat(sample, item))
                grades.append(None)
            except Missing as missing:
                grades.append(Grade(None, str(missing)))
        said = iter(aids.ask(asked, self.model, self.sampling_params))
        return [self._judged(next(said)) if grade is None else grade for grade in grades]

    def _judged(self, said: str | None) -> Grade:
        return Grade(None, "the judge refused", is_unjudged=True) if said is None else self.read(said)

    def _chat(self, sample: Sample, item: Item) -> tuple[Message, ...]:
        turns = [Message(turn.role, filled(turn.content, sample, item)) for turn in self.input]
        turns[-1] = Message(turns[-1].role, f"{turns[-1].content}\n\n{self.closing}")
        return tuple(turns)


class ScoreModel(ModelGrader):
    """The number that the model gives, between the ends of a range; what lies beyond them counts as the nearer end."""

    kind: Literal["score_model"] = Field("score_model", alias="type")
    range: tuple[float, float] = Field((0.0, 1.0), description="Least and greatest score.")

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.range[0] >= self.range[1]:
            raise fault_at("range", "must give the least score first")
        return self

    @property
    def closing(self) -> str:
        """See the base class."""
        low, high = self.range
        return f"End with a last line that holds nothing but a number from {low:g} (worst) to {high:g} (best)."

    def read(self, said: str) -> Grade:
        """The number of the last line with words, which may stand there as a share of the greatest score (8/10, 8 out of 10)."""
        last, (low, high) = last_line(said), self.range
        shares = _SHARE.findall(last)
        if any(float(whole) != high for _, whole in shares):
            return _unread(f"the judge gave a number on another scale than {low:g} to {high:g}", last)
        numbers = _NUMBER.findall(_SHARE.sub(r"\1", last))
        if len(numbers) != 1:
            return _unread("the judge gave several numbers" if numbers else "the judge gave no number", last)
        return Grade.of(min(high, max(low, float(numbers[0]))))


class LabelModel(ModelGrader):
    """1 if the model gives one of the passing labels, 0 if another of the labels."""

    kind: Literal["label_model"] = Field("label_model", alias="type")
    labels: tuple[str, ...] = Field(min_length=2, description="What the judge may say.")
    passing_labels: tuple[str, ...] = Field(min_length=1, description="Which of them count as 1.")

    @model_validator(mode="after")
    def _are_labels(self) -> Self:
        others = [label for label in self.passing_labels if label not in self.labels]
        if others:
            raise fault_at("passing_labels", f"{others[0]!r} is none of the labels")
        if len({label.casefold() for label in self.labels}) < len(self.labels):
            raise fault_at("labels", "must differ")
        return self

    @property
    def closing(self) -> str:
        """See the base class."""
        return closing_with(self.labels)

    def read(self, said: str) -> Grade:
        """The label that the last line with words is, or ends with; of two that fit, the longer one."""
        label = last_label(said, self.labels)
        if label is None:
            return _unread("the judge gave none of the labels", last_line(said).casefold())
        return Grade.of(label in self.passing_labels)


def _unread(why: str, last: str) -> Grade:
    return Grade(None, f"{why}: {last[:100]!r}", is_unjudged=True)
