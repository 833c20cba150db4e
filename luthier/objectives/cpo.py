"""CPO: prefer the better answer, with the plain loss of it in the place of a reference.

Xu et al. 2024, https://arxiv.org/abs/2401.08417, equations 3–5. With log π summed over an answer's tokens and p̄ their mean,

    loss = − (1 − ε) log σ(β(log π(y_w) − log π(y_l))) − ε log σ(− …) − α p̄(y_w),

the mean over the step's pairs, ε = 0 in the paper.
Shapes: B pairs.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from luthier.models.outputs import Outputs
from luthier.objectives.preference import Pairs, PreferenceObjective


def cpo(policy: Pairs, beta: float, alpha: float = 1.0, label_smoothing: float = 0.0) -> Tensor:
    """The loss of each pair, shape (B,), from log π of both answers; label_smoothing is ε."""
    margin_B = beta * policy.gap_B
    right_B, wrong_B = F.logsigmoid(margin_B), F.logsigmoid(-margin_B)
    return -(1 - label_smoothing) * right_B - label_smoothing * wrong_B - alpha * policy.means().chosen_B


class CPO(PreferenceObjective):
    """Prefer the better of two answers and learn to write it, without a reference."""

    kind: Literal["cpo"] = "cpo"
    beta: float = Field(0.1, gt=0.0, description="β: what a nat between both answers' log-probabilities is worth.")
    alpha: float = Field(1.0, ge=0.0, description="α: weight of the better answer's plain loss, nats a token.")
    label_smoothing: float = Field(
        0.0, ge=0.0, lt=0.5, description="ε: the chance that a row's answers are the wrong way round."
    )

    def losses(self, outputs: Outputs) -> Tensor:
        """The loss of each pair."""
        return cpo(self.policy(outputs), self.beta, self.alpha, self.label_smoothing)

    def rewards(self, outputs: Outputs) -> Pairs:
        """β log π."""
        return self.policy(outputs).times(self.beta)
