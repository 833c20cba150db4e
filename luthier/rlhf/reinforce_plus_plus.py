"""REINFORCE++: a token's return, made comparable over the whole rollout, is its advantage.

Hu et al. 2025, https://arxiv.org/abs/2501.03262, equations 6 to 10. With r the answer's reward and k1 = log π / π_ref of each token,

    A_t = r − β Σ_{k ≥ t} k1_k,    then   (A_t − mean) / std   over all tokens of the rollout

and PPO's clipped loss. With `baseline: group` the mean of the prompt's rewards is taken from r first; the other answers to a prompt
are then what each is measured against, and easy prompts do not drown hard ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from luthier.rlhf.advantages import centred, rewards_to_go, whitened
from luthier.rlhf.contract import ADVANTAGE, ClippedObjective, given_of
from luthier.rlhf.experience import Given
from luthier.rlhf.samples import Sample, by_group, rewards_of


class ReinforcePlusPlus(ClippedObjective):
    """Learn from each token's return beside those of all tokens of a rollout."""

    kind: Literal["reinforce++"] = "reinforce++"
    num_answers: int = Field(4, ge=1, description="How many answers to each prompt are drawn.")
    kl: float = Field(0.01, ge=0, description="β: what a nat of log π / π_ref takes from a token's reward.")
    baseline: Literal["none", "group"] = Field(
        "none", description="Whether the mean of a prompt's rewards is taken off first."
    )

    @property
    def needs_reference(self) -> bool:
        """Whether the reward has a pull to it."""
        return self.kl > 0

    @property
    def kl_start(self) -> float:
        """β."""
        return self.kl

    def credit(self, samples: Sequence[Sample], kl_weight: float) -> list[Given]:
        """Each token's return, whitened."""
        returns = []
        for group in by_group(samples):
            reward_G = rewards_of(group)
            for sample, reward in zip(group, centred(reward_G) if self.baseline == "group" else reward_G, strict=True):
                paid_T = -kl_weight * sample.ratio_T
                paid_T[-1] += reward
                returns.append(rewards_to_go(paid_T))
        advantages = [advantage_T.astype(np.float32) for advantage_T in whitened(returns)]
        return given_of(samples, **{ADVANTAGE: advantages})
