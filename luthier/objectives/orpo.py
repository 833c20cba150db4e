"""ORPO: supervised fine-tuning on the better answer that also lowers the odds of the worse one; no reference.

Hong et al. 2024, https://arxiv.org/abs/2403.07691, equations 6 and 7. With p̄ = exp of the mean log-probability of an answer's tokens,

    loss = NLL + λ · − log σ( log odds(y_w) − log odds(y_l) ),    odds = p̄ / (1 − p̄),

the mean over the step's pairs. NLL is nats a token over the prompt and the better answer, as in the authors' code, or over the answer
alone (`learn_prompt: false`).
Shapes: B pairs.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from luthier.models.outputs import Outputs
from luthier.objectives.preference import CHOSEN, PROMPT, Pairs, PreferenceObjective, sums_by_sample

_CERTAIN = -1e-6
"""The highest mean log-probability (nats) that odds are told of; at 0 they are infinite."""


def log_odds_gap(policy: Pairs) -> Tensor:
    """log odds of the better answer minus that of the worse one, shape (B,), fp32."""
    means = policy.means()
    chosen_B, rejected_B = (each_B.clamp(max=_CERTAIN) for each_B in (means.chosen_B, means.rejected_B))
    return (chosen_B - rejected_B) - (log1mexp(chosen_B) - log1mexp(rejected_B))


def log1mexp(x: Tensor) -> Tensor:
    """log(1 − exp(x)) for x < 0, without cancellation at either end."""
    is_near = x > -0.6931472
    near, far = torch.where(is_near, x, -1.0), torch.where(is_near, -1.0, x)
    return torch.where(is_near, torch.log(-torch.expm1(near)), torch.log1p(-torch.exp(far)))


def orpo(policy: Pairs, beta: float) -> Tensor:
    """λ · − log σ of the gap between both answers' log odds, shape (B,); beta is λ."""
    return -beta * F.logsigmoid(log_odds_gap(policy))


class ORPO(PreferenceObjective):
    """Learn to write the better of two answers and not the worse one, without a reference."""

    kind: Literal["orpo"] = "orpo"
    beta: float = Field(0.1, gt=0.0, description="λ: weight of the odds beside the plain loss.")
    learn_prompt: bool = Field(
        True, description="Whether the plain loss is over the prompt too, as in the authors' code."
    )

    @property
    def learns_prompts(self) -> bool:
        """As the settings say."""
        return self.learn_prompt

    def losses(self, outputs: Outputs) -> Tensor:
        """The loss of each pair."""
        sum_BS, count_BS = sums_by_sample(outputs.logprob_N, outputs.targets, PROMPT + 1)
        written_B = sum_BS[:, CHOSEN] + sum_BS[:, PROMPT]
        nll_B = -written_B / (count_BS[:, CHOSEN] + count_BS[:, PROMPT])
        return nll_B + orpo(self.policy(outputs), self.beta)

    def rewards(self, outputs: Outputs) -> Pairs:
        """λ times the mean log-probability."""
        return self.policy(outputs).means().times(self.beta)
