"""Texts of pre-training that a policy goes on learning beside its rewards, so that it does not forget how to write: PPO-ptx.

Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, equation 2. With γ the weight, each step's loss is

    loss = loss of the rollout + γ mean_n [ −log p(y_n | what its text holds before it) ]

over the tokens of the step's texts, at temperature 1. Which texts a step takes follows from the seed and the step alone.
Shapes: N targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydantic import Field
from torch import Tensor

from luthier.data.mixture import epoch_order
from luthier.models.outputs import Outputs
from luthier.objectives.contract import Sums
from luthier.objectives.likelihood import nll_sum
from luthier.types import Example, Settings, Targets

PRETRAINING = "pretraining"
"""What targets of such texts come with, so that they are told from those of answers."""


class Pretraining(Settings):
    """What is mixed in of pre-training."""

    data: str = Field(
        description="Texts, in any form of data.train; cut into pieces of data.max_length. Of rows with answers the answers are learned."
    )
    weight: float = Field(
        27.8,
        gt=0,
        description="γ: what a nat a token of the texts counts in the loss; InstructGPT's 27.8 is meant for its very small learning rate.",
    )
    rows_per_step: int | None = Field(
        None, ge=1, description="How many texts a step takes; unset: as many as it takes prompts."
    )


@dataclass(frozen=True)
class Texts:
    """The texts of a run. per_step: how many a step takes."""

    examples: Sequence[Example]
    weight: float
    per_step: int
    seed: int

    def of_step(self, step: int, divisor: float, first_document: int) -> list[Example]:
        """The texts of a step, counted from 1, weighted so that a loss that is divided by `divisor` gains γ times their mean."""
        total = len(self.examples)
        places = range((step - 1) * self.per_step, step * self.per_step)
        orders = {epoch: epoch_order(total, self.seed, epoch) for epoch in {place // total for place in places}}
        chosen = [self.examples[orders[place // total][place % total]] for place in places]
        scale = self.weight * divisor / sum(float(text.weight_N.sum(dtype=np.float64)) for text in chosen)
        return [
            replace(
                text,
                weight_N=(text.weight_N * scale).astype(np.float32),
                given={PRETRAINING: np.ones(len(text.token_N), np.float32)},
                document=first_document + number,
            )
            for number, text in enumerate(chosen)
        ]


def is_pretraining(targets: Targets) -> bool:
    """Whether a micro-batch holds such texts; none holds them beside answers."""
    return PRETRAINING in targets.given


def pretraining_sum(outputs: Outputs) -> Tensor:
    """The weighted sum of −log p over a micro-batch of texts, shape ()."""
    return nll_sum(outputs.logprob_N, outputs.targets.weight_N)


def pretraining_measured(outputs: Outputs) -> dict[str, Sums]:
    """Nats a token of the texts."""
    return {"pretraining_loss": (-outputs.logprob_N.detach().sum(), len(outputs.targets.token_N))}
