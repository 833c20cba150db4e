"""Group relative policy optimization: an answer is as good as it is better than the other answers to its prompt.

Shao et al. 2024, https://arxiv.org/abs/2402.03300, equations 3 and 4. With R_1 … R_G the rewards of the answers to one prompt,

    A_i = (R_i − mean R) / std R,    ℓ_t = − min(ρ_t A_i, clip(ρ_t, 1 − ε, 1 + ε_high) A_i) + β ρ_t k3(π ‖ π_ref)

ρ_t = π / π_old of token t. What is divided by: `reduction` answer has the mean over answers of each one's mean over its tokens, as in the
paper, under which long wrong answers are punished less a token; token has the mean over all tokens of the step, of DAPO (Yu et
al. 2025, https://arxiv.org/abs/2503.14476, equation 8); constant divides each answer by max_new_tokens, of Dr. GRPO (Liu et al. 2025,
https://arxiv.org/abs/2503.20783), which also leaves std out (`scale: none`). DAPO further has clip_high 0.28, leaves groups out whose
answers are all worth the same (their advantage is 0 in any case; with `resample_rounds` others take their place), and punishes answers that come near the limit (`overlong`,
equation 13). The factor ρ_t makes the gradient of the last term that of KL(π ‖ π_ref).
Shapes: G answers to a prompt, N targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from luthier.models.outputs import Outputs
from luthier.rlhf.advantages import Numbers, centred, group_relative
from luthier.rlhf.contract import ADVANTAGE, REFERENCE, ClippedObjective, for_tokens, given_of
from luthier.rlhf.experience import Given
from luthier.rlhf.policy_losses import divergence
from luthier.rlhf.samples import Sample, by_group, rewards_of

_EPSILON = 1e-4


class GRPO(ClippedObjective):
    """Learn from how each answer compares with the others to its prompt."""

    compares: ClassVar[bool] = True

    kind: Literal["grpo"] = "grpo"
    kl: float = Field(
        0.0, ge=0, description="β: what a nat of KL(π ‖ π_ref) costs; 0 leaves the reference out of the loss."
    )
    scale: Literal["group", "batch", "none"] = Field(
        "group",
        description="What R − mean R is divided by: the standard deviation of the prompt's rewards, that of all rewards of the rollout, or nothing.",
    )
    reduction: Literal["token", "answer", "constant"] = Field(
        "token",
        description="Whether every token counts alike (DAPO), every answer (GRPO), or every token against max_new_tokens (Dr. GRPO).",
    )
    overlong: int = Field(
        0,
        ge=0,
        description="DAPO's soft punishment: within the last so many tokens before max_new_tokens the reward falls by up to 1; 0 punishes none.",
    )
    mask_unended: bool = Field(False, description="Learn nothing from answers that were cut off at max_new_tokens.")

    @property
    def needs_reference(self) -> bool:
        """Whether the loss has a pull to it."""
        return self.kl > 0

    def learned(self, samples: Sequence[Sample]) -> list[Sample]:
        """All answers that have a reward; without those that were cut off, if they are masked."""
        kept = super().learned(samples)
        return [sample for sample in kept if sample.has_ended] if self.mask_unended else kept

    def tells_apart(self, samples: Sequence[Sample]) -> bool:
        """By the rewards that are compared: those with the punishment of overlong answers."""
        known = [sample for sample in samples if sample.reward is not None]
        return len(set(self._rewards(known).tolist())) > 1 and bool(self.learned(known))

    def credit(self, samples: Sequence[Sample], kl_weight: float) -> list[Given]:
        """The answer's advantage, for each of its tokens."""
        groups = [self._rewards(group) for group in by_group(samples)]
        every = np.concatenate(groups)
        known = every[~np.isnan(every)]
        spread = known.std(ddof=1) if len(known) > 1 else 0.0
        advantages: list[float] = []
        for reward_G in groups:
            match self.scale:
                case "group":
                    advantages += group_relative(reward_G).tolist()
                case "batch":
                    advantages += (centred(reward_G) / (spread + _EPSILON)).tolist()
                case "none":
                    advantages += centred(reward_G).tolist()
        return given_of(samples, **{ADVANTAGE: for_tokens(samples, advantages.__getitem__)})

    def _rewards(self, samples: Sequence[Sample]) -> Numbers:
        reward_G = rewards_of(samples)
        if self.overlong:
            over = [sample.num_tokens - (self.max_new_tokens - self.overlong) for sample in samples]
            reward_G = reward_G - np.clip(np.array(over) / self.overlong, 0, 1)
        return reward_G

    def token_weight(self, sample: Sample) -> float:
        """As `reduction` has it."""
        return {"token": 1.0, "answer": 1 / sample.num_tokens, "constant": 1 / self.max_new_tokens}[self.reduction]

    def divisor(self, samples: Sequence[Sample]) -> float:
        """All tokens, or all answers."""
        return super().divisor(samples) if self.reduction == "token" else float(len(samples)) or 1.0

    def losses(self, outputs: Outputs) -> Tensor:
        """The clipped loss, and the pull to the reference."""
        loss_N = self.policy_losses(outputs)
        if self.kl == 0:
            return loss_N
        delta_N = outputs.logprob_N - outputs.targets.given[REFERENCE]
        return loss_N + self.kl * self.ratio(outputs) * divergence(delta_N, "k3")
