"""What rollouts are made from: prompts, the policy that answers them, who else is asked, and how much is learned at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from luthier.generation.requests import Request
from luthier.generation.settings import Sampling
from luthier.methods.contract import Attachment
from luthier.models.language_model import LanguageModel
from luthier.prediction.passes import Passes
from luthier.rlhf.contract import RolloutObjective
from luthier.rlhf.worth import Answer
from luthier.rlhf.writers import Writer
from luthier.training.companions import Speaker
from luthier.types import Conversation, Example, FloatArray


@dataclass(frozen=True)
class Prompts:
    """What is answered: each prompt's tokens as an example, what it asks, and its row's columns, aligned."""

    examples: Sequence[Example]
    asked: Sequence[Conversation | str]
    items: Sequence[Mapping[str, Any]]

    def text(self, row: int) -> str:
        """A prompt in words: of a chat, its last message."""
        asked = self.asked[row]
        return asked.messages[-1].content if isinstance(asked, Conversation) else asked

    def answer(self, row: int, text: str, tokens: tuple[int, ...]) -> Answer:
        """An answer to a prompt, to be rewarded."""
        read = tuple(tokens_of(self.examples[row]))
        return Answer(self.text(row), text, self.items[row], self.asked[row], read, tokens)


@dataclass(frozen=True)
class Policy:
    """Who answers: a model under the adapter that learns. stop_ids: as a request has them. writer: computes the answers.

    autocast: the number format of matrix products, where it is another than the weights'.
    """

    model: LanguageModel
    attachment: Attachment
    stop_ids: frozenset[int]
    writer: Writer
    autocast: torch.dtype | None = None

    @property
    def compute_dtype(self) -> torch.dtype:
        """The number format that matrix products are computed in."""
        return self.model.dtype if self.autocast is None else self.autocast

    def requests(self, objective: RolloutObjective, prompts: Sequence[Example], seeds: Sequence[int]) -> list[Request]:
        """The prompts as the engine takes them, each with the seed of its draws."""
        return [
            Request(
                tuple(tokens_of(prompt)),
                objective.sampling(seed),
                self.attachment.adapter,
                self.stop_ids,
                num_answers=objective.num_answers,
                top_logprobs=0,
                tempers_logprobs=True,
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]


@dataclass(frozen=True)
class Ear:
    """Others that are asked of a rollout's answers: the reference, and what each critic expects, if there are any."""

    reference: Speaker | None = None
    values: Callable[[Sequence[Example], Passes], list[FloatArray]] | None = None


NOBODY = Ear()
"""No others."""


@dataclass(frozen=True)
class Size:
    """How much is learned at once. num_steps: of the run."""

    prompts_per_step: int
    num_steps: int
    budget: int


def requests_of(
    prompts: Sequence[Example], sampling: Sampling, adapter: str | None, stop_ids: frozenset[int], num_answers: int = 1
) -> list[Request]:
    """Prompts as the engine takes them, each with draws of its own."""
    return [
        Request(
            tuple(tokens_of(prompt)),
            sampling.model_copy(update={"seed": (sampling.seed + row) % 2**63}),
            adapter,
            stop_ids,
            num_answers=num_answers,
        )
        for row, prompt in enumerate(prompts)
    ]


def tokens_of(prompt: Example) -> list[int]:
    """A prompt's tokens."""
    tokens: list[int] = np.concatenate([part.tokens_T for part in prompt.parts]).tolist()
    return tokens
