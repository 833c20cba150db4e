"""SimPO: the better answer's mean log-probability is to be higher than the worse one's by a margin; no reference.

Meng et al. 2024, https://arxiv.org/abs/2405.14734, equation 6. With p̄ the mean log-probability of an answer's tokens,

    loss = − log σ( β p̄(y_w) − β p̄(y_l) − γ ),

the mean over the step's pairs. γ is in units of the reward β p̄; the paper advises γ / β of about 0.5.
Shapes: B pairs.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from luthier.models.outputs import Outputs
from luthier.objectives.preference import Pairs, PreferenceObjective


def simpo(policy: Pairs, beta: float, gamma: float) -> Tensor:
    """The loss of each pair, shape (B,), from log π of both answers."""
    return -F.logsigmoid(beta * policy.means().gap_B - gamma)


class SimPO(PreferenceObjective):
    """Prefer the better of two answers by the token, without a reference."""

    kind: Literal["simpo"] = "simpo"
    beta: float = Field(2.5, gt=0.0, description="β: what a nat of an answer's mean log-probability is worth.")
    gamma: float = Field(
        1.375, ge=0.0, description="γ: the margin between both rewards that is aimed at; about half of beta is usual."
    )

    def losses(self, outputs: Outputs) -> Tensor:
        """The loss of each pair."""
        return simpo(self.policy(outputs), self.beta, self.gamma)

    def rewards(self, outputs: Outputs) -> Pairs:
        """β p̄."""
        return self.policy(outputs).means().times(self.beta)
