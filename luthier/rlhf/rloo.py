"""REINFORCE leave-one-out: the other answers to a prompt are the baseline of each.

Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740, equations 6 to 8. A whole answer is one action, its reward

    R_i = r_i − β Σ_t log π / π_ref,    A_i = R_i − mean_{j ≠ i} R_j,    ℓ_i = − min(ρ_i A_i, clip(ρ_i, 1 − ε, 1 + ε) A_i)

with ρ_i = π / π_old of the whole answer, which is 1 with the gradient of log π where a rollout is learned from once. The loss is the
mean over answers.
Shapes: M answers, N targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from luthier.models.outputs import Outputs
from luthier.rlhf.advantages import leave_one_out
from luthier.rlhf.contract import ADVANTAGE, OLD, ClippedObjective, for_tokens, given_of
from luthier.rlhf.experience import Given
from luthier.rlhf.policy_losses import clipped
from luthier.rlhf.samples import Sample, by_group, rewards_of
from luthier.types import Targets


class RLOO(ClippedObjective):
    """Learn from how each whole answer compares with the mean of the others."""

    compares: ClassVar[bool] = True

    kind: Literal["rloo"] = "rloo"
    num_answers: int = Field(4, ge=2, description="How many answers to each prompt are drawn.")
    kl: float = Field(0.05, ge=0, description="β: what a nat of log π / π_ref takes from an answer's reward.")

    @property
    def needs_reference(self) -> bool:
        """Whether the reward has a pull to it."""
        return self.kl > 0

    @property
    def kl_start(self) -> float:
        """β."""
        return self.kl

    def credit(self, samples: Sequence[Sample], kl_weight: float) -> list[Given]:
        """The answer's advantage, for each of its tokens."""
        advantages: list[float] = []
        for group in by_group(samples):
            paid = torch.tensor([float(sample.ratio_T.sum()) for sample in group], dtype=torch.float64).numpy()
            advantages += leave_one_out(rewards_of(group) - kl_weight * paid).tolist()
        return given_of(samples, **{ADVANTAGE: for_tokens(samples, advantages.__getitem__)})

    def divisor(self, samples: Sequence[Sample]) -> float:
        """All answers."""
        return float(len(samples)) or 1.0

    def entropy_share(self, targets: Targets) -> Tensor:
        """An answer has the mean over its tokens, since the step's loss is the mean over answers."""
        answer_N = answers_of(targets)
        share_N: Tensor = 1 / torch.bincount(answer_N)[answer_N]
        return share_N

    def losses(self, outputs: Outputs) -> Tensor:
        """The loss of each answer, shared out among its tokens."""
        targets = outputs.targets
        answer_N = answers_of(targets)
        count_M = torch.bincount(answer_N)
        old_N = targets.given.get(OLD, outputs.logprob_N.detach())
        ratio_M = _summed(outputs.logprob_N - old_N, answer_N, len(count_M)).exp()
        advantage_M = _summed(targets.given[ADVANTAGE], answer_N, len(count_M)) / count_M
        loss_M = clipped(ratio_M, advantage_M, self.clip, self.high) / count_M
        return loss_M[answer_N]


def answers_of(targets: Targets) -> Tensor:
    """Which answer each target is of, counted over the micro-batch from 0, shape (N,)."""
    most = int(targets.sample_N.max()) + 1
    answer_N: Tensor = torch.unique(targets.row_N * most + targets.sample_N, return_inverse=True)[1]
    return answer_N


def _summed(number_N: Tensor, answer_N: Tensor, count: int) -> Tensor:
    return torch.zeros(count, device=number_N.device).index_add(0, answer_N, number_N.float())
