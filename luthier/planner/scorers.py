"""Reward models, as a plan sees them: adapters on the policy's own base, or models that stand alone; asked once a rollout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.methods import Method
from luthier.models.language_model import LanguageModel
from luthier.planner.beside import Other, heaviest
from luthier.planner.tracker import Tracker, all_tensors
from luthier.training.companions import Speaker
from luthier.types import Example

SCORED = "answers are scored"


@dataclass(frozen=True)
class Scorer:
    """A reward model. method: it was trained with. alone: the model that it is; None: an adapter beside the policy's.

    tokens_at_once: how many it reads together.
    """

    method: Method
    alone: Other | None
    tokens_at_once: int

    def seated(self, model: LanguageModel, number: int) -> Seated:
        """Without its numbers, where it is asked. model: whose base an adapter shares. number: tells it from others there."""
        if self.alone is not None:
            speaker = self.alone.speaker(model.device)
            return Seated(speaker, tuple(all_tensors(speaker.model.hf)), self.tokens_at_once)
        attachment = self.method.attach(model, f"scorer-{number}", 0)
        return Seated(Speaker(model, attachment.adapter), tuple(attachment.trainables.values()), self.tokens_at_once)


@dataclass(frozen=True)
class Seated:
    """A reward model in its place. tensors: what it holds of its own."""

    speaker: Speaker
    tensors: Iterable[Tensor]
    tokens_at_once: int


@torch.no_grad()
def score(scorer: Seated, rows: Sequence[Example], tracker: Tracker) -> None:
    """Have a reward model read answers, counted as that phase: as many tokens as the policy reads them as."""
    batch = heaviest(scorer.speaker, rows, scorer.tokens_at_once)
    with tracker.doing(SCORED, "other"):
        scorer.speaker.of_batch(batch)
