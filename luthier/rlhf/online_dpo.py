"""Online DPO: of two answers that the policy writes now, the one that is worth more is preferred.

Guo et al. 2024, https://arxiv.org/abs/2402.04792, algorithm 1: direct preference optimization (`objectives/dpo.py`) of the best against
the worst of a prompt's answers. Answers that are worth the same are no pair. The loss is the mean over pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from luthier.models.outputs import Outputs
from luthier.objectives.contract import Sums
from luthier.objectives.dpo import DPOLoss, dpo
from luthier.objectives.preference import Pairs, pairs_of
from luthier.rlhf.contract import REFERENCE, RolloutObjective, given_of
from luthier.rlhf.experience import Given
from luthier.rlhf.samples import Sample
from luthier.types import Targets


class OnlineDPO(RolloutObjective):
    """Prefer the better of two answers that the model writes itself."""

    loss_unit: ClassVar[str] = "per pair"
    keeps_groups: ClassVar[bool] = True
    compares: ClassVar[bool] = True

    kind: Literal["online-dpo"] = "online-dpo"
    num_answers: int = Field(
        2, ge=2, description="How many answers to each prompt are drawn; best and worst are the pair."
    )
    beta: float = Field(0.1, gt=0.0, description="β: how much a nat of log π / π_ref is worth.")
    loss: DPOLoss = Field("sigmoid", description="As in dpo.")

    @property
    def needs_old(self) -> bool:
        """The loss has no ratio to the policy that wrote the answers."""
        return False

    @property
    def needs_reference(self) -> bool:
        """It has one to the reference."""
        return True

    def learned(self, samples: Sequence[Sample]) -> list[Sample]:
        """The best and the worst; none where they are worth the same, or are the same."""
        known = super().learned(samples)
        best = max(known, key=lambda sample: sample.reward or 0.0, default=None)
        worst = min(known, key=lambda sample: sample.reward or 0.0, default=None)
        if best is None or worst is None or best.reward == worst.reward or best.tokens == worst.tokens:
            return []
        return [best, worst]

    def credit(self, samples: Sequence[Sample], kl_weight: float) -> list[Given]:
        """Nothing but what was asked."""
        return given_of(samples)

    def divisor(self, samples: Sequence[Sample]) -> float:
        """All pairs."""
        return len(samples) / 2 or 1.0

    def losses(self, outputs: Outputs) -> Tensor:
        """The loss of each pair, shared out among its tokens."""
        targets = outputs.targets
        policy = self._ratios(outputs)
        loss_B = dpo(policy, self.beta, self.loss)
        count_B = (policy.chosen_tokens_B + policy.rejected_tokens_B).clamp(min=1)
        return (loss_B / count_B)[targets.row_N]

    def entropy_share(self, targets: Targets) -> Tensor:
        """A pair has the mean over its tokens, since the step's loss is the mean over pairs."""
        share_N: Tensor = 1 / torch.bincount(targets.row_N)[targets.row_N]
        return share_N

    def _ratios(self, outputs: Outputs) -> Pairs:
        targets = outputs.targets
        return pairs_of(outputs.logprob_N, targets).over(pairs_of(targets.given[REFERENCE], targets))

    def measured(self, outputs: Outputs) -> dict[str, Sums]:
        """Also how often the better answer has the higher implicit reward, and by how much."""
        gap_B = self.beta * self._ratios(outputs.at(self.temperature)).gap_B.detach()
        count = len(gap_B)
        accuracy = ((gap_B.sign() + 1) / 2).sum()
        return {
            **super().measured(outputs),
            "reward_margin": (gap_B.sum(), count),
            "reward_accuracy": (accuracy, count),
        }
