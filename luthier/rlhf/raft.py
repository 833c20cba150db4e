"""Rejection sampling: of several answers to a prompt the best is learned as if a person had written it.

RAFT: Dong et al. 2023, https://arxiv.org/abs/2304.06767, algorithm 1; rejection sampling fine-tuning in Llama 2 (Touvron et al. 2023,
https://arxiv.org/abs/2307.09288, section 3.2.3). The loss is the mean of −log p over the tokens of the best answers, if they
are worth at least `least`. Only what is good is learned, so gains come early and the answers soon lose their variety.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from luthier.models.outputs import Outputs
from luthier.rlhf.contract import RolloutObjective, given_of
from luthier.rlhf.experience import Given
from luthier.rlhf.samples import Sample


class RAFT(RolloutObjective):
    """Learn to write the best of several answers."""

    kind: Literal["raft"] = "raft"
    num_best: int = Field(1, ge=1, description="How many of a prompt's answers are learned, the best first.")
    least: float | None = Field(None, description="What an answer must be worth to be learned; unset: nothing.")

    @property
    def learned_at(self) -> float:
        """1: the best answers are learned as any others are, at whatever temperature they were drawn."""
        return 1.0

    @property
    def needs_old(self) -> bool:
        """The loss has no ratio."""
        return False

    def learned(self, samples: Sequence[Sample]) -> list[Sample]:
        """The best of them; of equal ones the first."""
        known = [sample for sample in super().learned(samples) if self.least is None or _worth(sample) >= self.least]
        return sorted(known, key=lambda sample: -_worth(sample))[: self.num_best]

    def credit(self, samples: Sequence[Sample], kl_weight: float) -> list[Given]:
        """Nothing but what was asked."""
        return given_of(samples)

    def losses(self, outputs: Outputs) -> Tensor:
        """−log p of each target."""
        return -outputs.logprob_N


def _worth(sample: Sample) -> float:
    assert sample.reward is not None
    return sample.reward if np.isfinite(sample.reward) else -np.inf
