"""A score or a label that a model is asked for.

The model is told to end with its verdict alone on the last line, which is read by a plain rule: no part of the answer that is
judged can be taken for it unless the judge repeats it there.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from luthier.evaluation.grading.contract import Aids, Grade, Grader, Item, Sample
from luthier.evaluation.grading.templates import Missing, Template, filled
from luthier.types import Message, Settings, fault_at

_LAST_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)")


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
    lines = [line.strip(" \t.*_`\"'") for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else ""


class Turn(Settings):
    """One message of what the judge is asked; its content may have places for the row and the answer."""

    role: Literal["system", "developer", "user", "assistant"] = Field("user", description="Who speaks.")
    content: Template = Field(description="What is said.")


class ModelGrader(Grader):
    """What graders by a model share: what it is asked, and how it draws."""

    input: tuple[Turn, ...] = Field(min_length=1, description="The chat that the model is given.")
    model: str | None = Field(None, description="Which model judges; unset: the one that the caller names.")
    sampling_params: dict[str, Any] = Field(
        default_factory=dict, description="temperature, top_p, seed, max_new_tokens."
    )

    @property
    def asks_model(self) -> bool:
        """Whether it cannot do without one."""
        return True

    @property
    @abstractmethod
    def closing(self) -> str:
        """How the judge is told to end."""

    @abstractmethod
    def read(self, said: str) -> Grade:
        """The grade in what the judge said."""

    def grade(self, sample: Sample, item: Item) -> Grade:
        """Without a model there is no grade."""
        return Grade(None, "there is no model to ask")

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
        said = iter(aids.ask(asked, self.sampling_params))
        return [self.read(next(said)) if grade is None else grade for grade in grades]

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
        """The last number of the last line that holds one."""
        numbers = _LAST_NUMBER.findall(said)
        if not numbers:
            return Grade(None, f"the judge gave no number: {said[:100]!r}")
        low, high = self.range
        return Grade.of(min(high, max(low, float(numbers[-1]))))


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
            return Grade(None, f"the judge gave none of the labels: {last_line(said).casefold()[:100]!r}")
        return Grade.of(label in self.passing_labels)
