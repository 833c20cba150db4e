"""Direct preference optimization: make the better answer likelier than the worse one, measured against a reference.

Rafailov et al. 2023, https://arxiv.org/abs/2305.18290. With a = log π(y_w|x) − log π_ref(y_w|x) and b the same of the worse
answer, both summed over the answer's tokens, Δ = a − b and σ the logistic function, the loss of a pair is

    sigmoid       − (1 − ε) log σ(βΔ) − ε log σ(−βΔ)    equation 7 with ε = 0; with ε cDPO (Mitchell 2023,
                                                        https://ericmitchell.ai/cdpo.pdf): labels are wrong with chance ε
    robust        (− (1 − ε) log σ(βΔ) + ε log σ(−βΔ)) / (1 − 2ε)
                                                        Chowdhury et al. 2024, https://arxiv.org/abs/2403.00409, equation 12
    hinge         max(0, 1 − βΔ)                        as in SLiC, Zhao et al. 2023, https://arxiv.org/abs/2305.10425
    ipo           (Δ̄ − 1 / (2β))²                       Azar et al. 2023, https://arxiv.org/abs/2310.12036, equation 17, β its τ
    sigmoid-norm  − log σ(βΔ̄), with ε as above

where Δ̄ has each answer's log-ratio divided by its tokens (for ipo as its authors compute it). The loss of a step is the mean over its
pairs. The reference is the model as it was before anything trained.
Shapes: B pairs.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from luthier.models.outputs import Outputs
from luthier.objectives.preference import Pairs, PreferenceObjective
from luthier.types import fault_at

DPOLoss = Literal["sigmoid", "robust", "hinge", "ipo", "sigmoid-norm"]


def dpo(ratios: Pairs, beta: float, loss: DPOLoss = "sigmoid", label_smoothing: float = 0.0) -> Tensor:
    """The loss of each pair, shape (B,), from log π / π_ref of both answers; label_smoothing is ε."""
    margin_B = beta * (ratios.means() if loss in ("ipo", "sigmoid-norm") else ratios).gap_B
    if loss == "hinge":
        return torch.relu(1 - margin_B)
    if loss == "ipo":
        return (margin_B / beta - 1 / (2 * beta)).square()
    right_B, wrong_B = F.logsigmoid(margin_B), F.logsigmoid(-margin_B)
    if loss == "robust":
        return (-(1 - label_smoothing) * right_B + label_smoothing * wrong_B) / (1 - 2 * label_smoothing)
    return -(1 - label_smoothing) * right_B - label_smoothing * wrong_B


class DPO(PreferenceObjective):
    """Prefer the better of two answers, not far from where the model began."""

    asks_reference: ClassVar[bool] = True

    kind: Literal["dpo"] = "dpo"
    beta: float = Field(
        0.1,
        gt=0.0,
        description="β: how much a nat of log π / π_ref is worth; the larger, the nearer the model stays to where it began.",
    )
    loss: DPOLoss = Field(
        "sigmoid",
        description="sigmoid (the paper's), robust (to wrong labels), hinge, ipo (a target gap, by the token), or sigmoid-norm (by the token).",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0.0,
        lt=0.5,
        description="ε: the chance that a row's answers are the wrong way round; for sigmoid, robust, sigmoid-norm.",
    )

    @model_validator(mode="after")
    def _smooths_what_can_be(self) -> Self:
        if self.label_smoothing and self.loss in ("hinge", "ipo"):
            raise fault_at(
                "objective.label_smoothing",
                f"label_smoothing does nothing with loss {self.loss}; set loss to sigmoid or robust, or leave it out.",
            )
        return self

    def losses(self, outputs: Outputs) -> Tensor:
        """The loss of each pair."""
        return dpo(self.ratios(outputs), self.beta, self.loss, self.label_smoothing)

    def rewards(self, outputs: Outputs) -> Pairs:
        """β log π / π_ref."""
        return self.ratios(outputs).times(self.beta)
