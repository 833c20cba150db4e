"""Answers that a policy wrote, what each was worth, and what was thought of its tokens; kept as lines of JSON.

Shapes: T tokens of an answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from luthier.generation.requests import FinishReason
from luthier.rlhf.advantages import Numbers
from luthier.types import FloatArray


@dataclass(frozen=True)
class Sample:
    """One answer.

    row: which prompt it answers, as an index into all of them. group: which of the rollout's prompts. prompt, text: in words.
    version: how many optimizer steps the policy that wrote it had taken.
    reward: None where there is none to give; fault then says why. parts: what it was made of, by name. spreads: how far the members of
    an ensemble differ.
    engine_T: log p of its tokens (nats) as they were drawn. old_T, reference_T, value_T: log p under the policy as the trainer
    computes it, under the reference, and what the critic expects; None where nobody was asked.
    replaced: whether all answers to its prompt were worth the same, so that another prompt took its place.
    """

    row: int
    group: int
    prompt: str
    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    version: int
    engine_T: FloatArray
    reward: float | None = None
    parts: Mapping[str, float | None] = field(default_factory=dict)
    fault: str | None = None
    spreads: Mapping[str, float] = field(default_factory=dict)
    old_T: FloatArray | None = None
    reference_T: FloatArray | None = None
    value_T: FloatArray | None = None
    replaced: bool = False

    @property
    def has_ended(self) -> bool:
        """Whether the answer came to its own end."""
        return self.finish_reason in ("stop", "stop_string")

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer."""
        return len(self.tokens)

    @property
    def ratio_T(self) -> Numbers:
        """log π / π_ref of its tokens when it was written; zeros where there is no reference."""
        if self.reference_T is None:
            return np.zeros(self.num_tokens)
        own_T = self.engine_T if self.old_T is None else self.old_T
        return own_T.astype(np.float64) - self.reference_T.astype(np.float64)

    def line(self) -> str:
        """The sample as one line of JSON; `sample_of` gives the very same again."""
        arrays = {name: _listed(value) for name, value in vars(self).items() if name.endswith("_T")}
        return json.dumps({**vars(self), **arrays}, ensure_ascii=False)


def _listed(value: FloatArray | None) -> list[float] | None:
    return None if value is None else [float(number) for number in value]


def sample_of(line: str) -> Sample:
    """The sample that a line holds."""
    values: dict[str, Any] = json.loads(line)
    for name, value in values.items():
        if name.endswith("_T") and value is not None:
            values[name] = np.array(value, dtype=np.float32)
    return Sample(**{**values, "tokens": tuple(values["tokens"])})


def by_group(samples: Sequence[Sample]) -> list[list[Sample]]:
    """The answers to each prompt of a rollout, in the order of the prompts."""
    groups: dict[int, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.group, []).append(sample)
    return list(groups.values())


def rewards_of(samples: Sequence[Sample]) -> Numbers:
    """Their rewards, NaN where there is none, shape (G,)."""
    return np.array([np.nan if sample.reward is None else sample.reward for sample in samples], dtype=np.float64)


def with_said(samples: Sequence[Sample], name: str, said: Sequence[FloatArray]) -> list[Sample]:
    """The samples with what was said of each one's tokens under that name."""
    return [replace(sample, **{name: of_T}) for sample, of_T in zip(samples, said, strict=True)]  # type: ignore[arg-type]
