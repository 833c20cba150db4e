"""What a grader owes those who ask it: a score for each answer, or why there is none.

Graders judge answers in evaluation, and are rewards in reinforcement learning. Their settings have the names and meaning of
OpenAI's grader types where there is one, so that a grader written for that service is read as it is.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import AliasChoices, Field, model_validator

from luthier.types import Message, Settings, fault_at

Item = Mapping[str, Any]
"""The row that an answer belongs to: its columns, which graders read references from."""


class JudgeSampling(Settings):
    """How a judge draws its answers: greedily, unless it says otherwise."""

    temperature: float = Field(0.0, ge=0, description="Divides the scores before drawing; 0 takes the likeliest token.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Draw from the fewest likeliest tokens that hold this share of the probability."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Number that decides the draws.")
    max_new_tokens: int | None = Field(
        None,
        ge=1,
        validation_alias=AliasChoices("max_new_tokens", "max_completions_tokens"),
        description="Most tokens of an answer; unset: as many as the caller allows.",
    )

    @model_validator(mode="before")
    @classmethod
    def _are_read(cls, values: Any) -> Any:
        """Without those that are null, as OpenAI's service writes what is unset."""
        if not isinstance(values, Mapping):
            return values
        given = {name: value for name, value in values.items() if value is not None}
        if "reasoning_effort" in given:
            raise fault_at("reasoning_effort", "cannot be set for a judge here; take it out")
        if {"max_new_tokens", "max_completions_tokens"} <= given.keys():
            raise fault_at("max_completions_tokens", "says the same as max_new_tokens; give one of them")
        return given


Ask = Callable[[Sequence[tuple[Message, ...]], str | None, JudgeSampling], list[str | None]]
"""Puts several chats to a model, by the name that the grader has for it, and gives its answers in their order; None for a refusal."""


@dataclass(frozen=True)
class Sample:
    """An answer that is graded, and the prompt that it was given to."""

    text: str
    prompt: str = ""

    @cached_property
    def json(self) -> Any:
        """The answer read as JSON; None where it is none."""
        try:
            return json.loads(self.text)
        except (ValueError, RecursionError):
            return None


@dataclass(frozen=True)
class Grade:
    """score: None where there is none to give, and `fault` then says why. parts: the scores that it was made of, by name.

    is_unjudged: the fault is not the answer's: who should have judged it did not.
    """

    score: float | None
    fault: str | None = None
    parts: Mapping[str, float | None] = field(default_factory=dict)
    is_unjudged: bool = False

    @classmethod
    def of(cls, score: float) -> Grade:
        """A grade of a number; one that is not finite is a fault."""
        return cls(float(score)) if math.isfinite(score) else cls(None, f"the score is {score}")


@dataclass(frozen=True)
class Aids:
    """What graders may use: a model to ask (None: there is none), and how many processes may run side by side."""

    ask: Ask | None = None
    processes: int = 2


class Grader(Settings, ABC):
    """The settings of a grader; `kind` (also written `type`) names it."""

    kind: str = Field(alias="type")
    name: str = Field("score", description="What the score is called.")

    @property
    def asked_models(self) -> tuple[str | None, ...]:
        """The models that it asks by the names that it has for them; None for one that the caller is to name."""
        return ()

    @property
    def asks_model(self) -> bool:
        """Whether it cannot do without a model to ask."""
        return bool(self.asked_models)

    @abstractmethod
    def grade(self, sample: Sample, item: Item) -> Grade:
        """The grade of one answer. Raises nothing that the answer or the row could cause: that is a fault in the grade."""

    def grade_all(self, samples: Sequence[Sample], items: Sequence[Item], aids: Aids) -> list[Grade]:
        """The grades of several answers, in their order."""
        return [self.grade(sample, item) for sample, item in zip(samples, items, strict=True)]


class ProcessGrader(Grader):
    """A grader that runs code, in a process for each answer."""

    def grade_all(self, samples: Sequence[Sample], items: Sequence[Item], aids: Aids) -> list[Grade]:
        """The grades of several answers, as many processes at once as `aids` allows."""
        with ThreadPoolExecutor(aids.processes) as pool:
            return list(pool.map(self.grade, samples, items))
