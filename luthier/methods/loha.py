"""LoHa: learn a change of frozen weights as the entrywise product of two low-rank matrices.

Hyeon-Woo et al. 2021 (FedPara), https://arxiv.org/abs/2108.06098, equation 1; Yeh et al. 2023 (LyCORIS),
https://arxiv.org/abs/2309.14859:  y = x Wᵀ + c + s · x ((B₁ A₁) ⊙ (B₂ A₂))ᵀ,  s = α / R,  A₂ = 0 at the start.
With the numbers of a LoRA of rank 2R the change has a rank of up to R². Each pass builds it whole: time as for another
product with W, memory as for another W while the layer computes.

Merges: yes. Deep backward: yes, to the lowest adapted layer. Over 4 bits: yes. Identity at the start: exact.
Trainable numbers: Σ 2 R (I + O) over the adapted layers.
Shapes: N tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from luthier.methods.adapter import LayerMethod, linear_of, trainable
from luthier.methods.bank import AdaptedLayer, AdaptedLinear, Branch, LinearBranch, may_fuse
from luthier.methods.contract import Kin, Traits
from luthier.methods.peft_files import PeftForm
from luthier.models.call import Run
from luthier.ops.hadamard import Factors, hadamard_linear, hadamard_linear_reference, hadamard_product


class LoHa(LayerMethod):
    """Updates of high rank from few numbers: products, entry by entry, of two low-rank ones."""

    family: ClassVar[Kin] = "low-rank"
    paper: ClassVar[str] = "https://arxiv.org/abs/2108.06098"
    count: ClassVar[str] = "Σ 2 R (I + O) over the adapted layers"
    traits: ClassVar[Traits] = Traits(merges=True, deep_backward=True, over_4bit=True, identity_at_start=True)
    default_lr: ClassVar[float] = 1e-4
    form: ClassVar[PeftForm] = PeftForm(
        title="LoHa",
        peft_type="LOHA",
        fields={"rank": "r", "alpha": "alpha"},
        required=("r", "alpha"),
        endings=("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
        allowed={"rank_pattern": (None, {}), "alpha_pattern": (None, {})},
        constants={"init_weights": True},
        transposes=False,
    )

    kind: Literal["loha"] = "loha"
    rank: int = Field(8, ge=1, description="Rank of each of the two matrices; the update's is up to its square.")
    alpha: float | None = Field(
        None, gt=0, description="Strength: the update is scaled by alpha / rank. Unset: the rank."
    )

    def branch(self, layer: AdaptedLayer, generator: torch.Generator, fast: bool) -> Branch:
        """A₂ zero, the others Kaiming-uniform with a = √5, as in peft."""
        linear = linear_of(layer, self.kind)
        (outputs, inputs), device = linear.shape, linear.device
        b1_OR = uniform(outputs, self.rank, generator)
        a1_RI = uniform(self.rank, inputs, generator)
        b2_OR = uniform(outputs, self.rank, generator)
        starts = (b1_OR, a1_RI, b2_OR, torch.zeros(self.rank, inputs))
        scale = 1.0 if self.alpha is None else self.alpha / self.rank
        return LoHaBranch([trainable(start, device) for start in starts], scale, fast)

    def file_settings(self) -> dict[str, Any]:
        """As for any adapter, with the strength settled."""
        return {**super().file_settings(), "alpha": self.rank if self.alpha is None else self.alpha}


def uniform(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """A Kaiming-uniform start with a = √5: within ± 1 / √columns."""
    return (torch.rand(rows, columns, generator=generator) * 2 - 1) / math.sqrt(columns)


class LoHaBranch(LinearBranch):
    """B₁ (O, R), A₁ (R, I), B₂ (O, R), A₂ (R, I), and the factor on their product."""

    def __init__(self, factors: list[nn.Parameter], scale: float, fast: bool) -> None:
        super().__init__()
        self.b1_OR, self.a1_RI, self.b2_OR, self.a2_RI = factors
        self.scale, self.fast = scale, fast

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """The factors under peft's names."""
        return {
            "hada_w1_a": self.b1_OR,
            "hada_w1_b": self.a1_RI,
            "hada_w2_a": self.b2_OR,
            "hada_w2_b": self.a2_RI,
        }

    @property
    def factors(self) -> Factors:
        """All four."""
        return self.b1_OR, self.a1_RI, self.b2_OR, self.a2_RI

    def forward(self, x_NI: Tensor, layer: AdaptedLinear, run: Run) -> Tensor:
        """x Wᵀ + c + s · x ((B₁ A₁) ⊙ (B₂ A₂))ᵀ."""
        use_fast = self.fast and may_fuse(x_NI)
        compute = hadamard_linear if use_fast else hadamard_linear_reference
        y_NO = layer.product(x_NI)
        return y_NO + compute(x_NI, self.factors, self.scale).to(y_NO.dtype)

    def merged(self, weight_OI: Tensor, bias_O: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W + s (B₁ A₁) ⊙ (B₂ A₂)."""
        return weight_OI + self.scale * hadamard_product(self.factors), bias_O
