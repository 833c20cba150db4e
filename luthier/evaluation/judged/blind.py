"""Pairs of answers as a person judges them: nobody's name beside them, and in an order that a seed and the pair decide.

A pair is known by its content, so that files may be sorted anew or grow while they are judged. The order in which its two
answers are shown follows from the seed and the pair alone: not from the time, and not from what was judged before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

from luthier.errors import DataError

Asked = str | list[dict[str, Any]]
"""A prompt as JSON has it: a text, or messages with role and content."""


@dataclass(frozen=True)
class Response:
    """One answer. id: unique among the answers to its prompt. model: who wrote it. reward: what it was given, where it was."""

    id: str
    text: str
    model: str
    reward: float | None = None

    def as_json(self) -> dict[str, Any]:
        """As judgments keep it."""
        beside = {} if self.reward is None else {"reward": self.reward}
        return {"id": self.id, "text": self.text, "model": self.model, **beside}


@dataclass(frozen=True)
class Question:
    """A prompt and all answers that there are to it."""

    prompt: Asked
    responses: tuple[Response, ...]


@dataclass(frozen=True)
class Pair:
    """Two answers to a prompt."""

    prompt: Asked
    responses: tuple[Response, Response]

    @cached_property
    def id(self) -> str:
        """Sixteen hexadecimal digits that prompt, texts and models decide."""
        return _digest([self.prompt, [[each.text, each.model] for each in self.responses]])[:16]

    def shown(self, seed: int) -> tuple[Response, Response]:
        """The two in the order in which they are shown, each order as likely as the other."""
        first, second = self.responses
        return (second, first) if int(_digest([seed, self.id])[0], 16) % 2 else (first, second)


def prompt_key(prompt: Asked) -> str:
    """A prompt as a text that no other prompt has."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False, sort_keys=True)


def prompt_text(prompt: Asked) -> str:
    """A prompt as it is read: messages with their roles."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"[{each.get('role')}] {each.get('content')}" for each in prompt)


def pairs_of(questions: Iterable[Question], per_prompt: int, announce: Callable[[str], None]) -> list[Pair]:
    """The pairs to judge, at most so many of a prompt's answers; those of a prompt with more are drawn by their content.

    A larger `per_prompt` keeps the pairs of a smaller one. announce: is told how many were left out, and why.

    Raises: DataError, where no pair is left.
    """
    pairs: dict[str, Pair] = {}
    num_alike = num_drawn = num_twice = num_questions = 0
    for question in questions:
        num_questions += 1
        found = _different(question)
        num_alike += not found
        num_drawn += len(found) > per_prompt
        for pair in found[:per_prompt]:
            num_twice += pair.id in pairs
            pairs.setdefault(pair.id, pair)
    if num_alike:
        announce(f"Left out: {num_alike:,} prompts that have no two different answers.")
    if num_twice:
        announce(f"Left out: {num_twice:,} pairs that are there already, word for word.")
    if num_drawn:
        announce(
            f"{num_drawn:,} prompts have more answers: {per_prompt} of their pairs are judged (--pairs-per-prompt)."
        )
    if not pairs:
        found_none = f"there is nothing to judge: none of {num_questions:,} prompts has two different answers."
        raise DataError(found_none, "Give answers that differ; models that answer alike may not with --temperature 1.")
    return list(pairs.values())


def _different(question: Question) -> list[Pair]:
    """All pairs of answers that are not the same text, in an order that their content decides."""
    pairs = [Pair(question.prompt, two) for two in combinations(question.responses, 2) if two[0].text != two[1].text]
    return pairs if len(pairs) < 2 else sorted(pairs, key=lambda pair: pair.id)


def _digest(value: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=True, sort_keys=True).encode()).hexdigest()
