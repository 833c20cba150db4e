"""LoKr: learn a change of frozen weights as a Kronecker product.

Yeh et al. 2023 (LyCORIS), https://arxiv.org/abs/2309.14859:  y = x Wᵀ + c + s · x (C ⊗ D)ᵀ,  s = α / R.
The inputs and the outputs of a layer are each split into two parts: C (P, Q) is the outer factor, of the smaller parts, and
D (S, T) the inner one, so that O = P S and I = Q T. D is a product of rank R where R is below half of its longer side, and
a whole matrix where not; C is whole, or with `decompose_both` by the same rule. C (or its left part) is 0 at the start, so
at the first step it alone has a gradient. LyCORIS takes s = 1 where both are whole; peft, and so this, always α / R.

Merges: yes. Deep backward: yes, to the lowest adapted layer. Over 4 bits: yes. Identity at the start: exact.
Trainable numbers: Σ P Q + R (S + T) over the adapted layers, or P Q + S T where D is whole.
Shapes: N tokens, I inputs, O outputs, R rank; P, Q, S, T the sides of the factors.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from luthier.methods.adapter import LayerMethod, linear_of, trainable
from luthier.methods.bank import AdaptedLayer, AdaptedLinear, Branch, LinearBranch
from luthier.methods.contract import Kin, Traits
from luthier.methods.loha import uniform
from luthier.methods.peft_files import PeftForm
from luthier.models.call import Run
from luthier.ops.kronecker import kron_linear

FACTOR_HELP = "Size of the outer part that a layer's inputs and its outputs are each split by, or the next smaller divisor where it divides not; -1 splits most evenly."


class LoKr(LayerMethod):
    """Updates that are Kronecker products: of full rank from very few numbers."""

    family: ClassVar[Kin] = "low-rank"
    paper: ClassVar[str] = "https://arxiv.org/abs/2309.14859"
    count: ClassVar[str] = "Σ P Q + R (S + T) over the adapted layers, O = P S, I = Q T; P Q + S T where D is whole"
    traits: ClassVar[Traits] = Traits(merges=True, deep_backward=True, over_4bit=True, identity_at_start=True)
    default_lr: ClassVar[float] = 1e-3
    form: ClassVar[PeftForm] = PeftForm(
        title="LoKr",
        peft_type="LOKR",
        fields={"rank": "r", "alpha": "alpha", "factor": "decompose_factor", "decompose_both": "decompose_both"},
        required=("r", "alpha"),
        missing={"factor": -1, "decompose_both": False},
        endings=("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"),
        allowed={"rank_pattern": (None, {}), "alpha_pattern": (None, {})},
        constants={"init_weights": True},
        transposes=False,
    )

    kind: Literal["lokr"] = "lokr"
    rank: int = Field(8, ge=1, description="Rank of the inner factor, which is a whole matrix where that is no larger.")
    alpha: float | None = Field(
        None, gt=0, description="Strength: the update is scaled by alpha / rank. Unset: the rank."
    )
    factor: int = Field(-1, description=FACTOR_HELP)
    decompose_both: bool = Field(False, description="Whether the outer factor is of low rank too.")

    @field_validator("factor")
    @classmethod
    def _factor_divides(cls, factor: int) -> int:
        return checked_factor(factor)

    def branch(self, layer: AdaptedLayer, generator: torch.Generator, fast: bool) -> Branch:
        """The outer factor zero, the inner Kaiming-uniform with a = √5, as in peft."""
        linear = linear_of(layer, self.kind)
        outputs, inputs = linear.shape
        outer, inner = kron_shapes(outputs, inputs, self.factor)
        starts = {
            **self._starts("lokr_w1", outer, not self.decompose_both, generator),
            **self._starts("lokr_w2", inner, False, generator),
        }
        (starts["lokr_w1"] if "lokr_w1" in starts else starts["lokr_w1_a"]).zero_()
        factors = {ending: trainable(start, linear.device) for ending, start in starts.items()}
        return LoKrBranch(factors, 1.0 if self.alpha is None else self.alpha / self.rank)

    def file_settings(self) -> dict[str, Any]:
        """As for any adapter, with the strength settled."""
        return {**super().file_settings(), "alpha": self.rank if self.alpha is None else self.alpha}

    def _starts(
        self, name: str, shape: tuple[int, int], is_whole: bool, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """A factor by its ending: whole, or as two where the rank is below half of its longer side."""
        if is_whole or self.rank >= max(shape) / 2:
            return {name: uniform(*shape, generator)}
        return {
            f"{name}_a": uniform(shape[0], self.rank, generator),
            f"{name}_b": uniform(self.rank, shape[1], generator),
        }


def checked_factor(factor: int) -> int:
    """The factor, if there is a split by it."""
    if factor == -1 or factor >= 1:
        return factor
    raise ValueError(f"a factor of {factor} splits nothing; set a number from 1 on, or -1 to split most evenly")


def kron_shapes(outputs: int, inputs: int, factor: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The shapes of the outer and the inner factor of a Kronecker product of shape (O, I)."""
    (outer_O, inner_O), (outer_I, inner_I) = split(outputs, factor), split(inputs, factor)
    return (outer_O, outer_I), (inner_O, inner_I)


def split(width: int, factor: int) -> tuple[int, int]:
    """Two numbers whose product is the width: the factor first if it divides, else the smaller first.

    Else means the most even split whose smaller number is at most the factor; (1, width) for a prime.
    """
    if factor > 0 and width % factor == 0:
        return factor, width // factor
    largest = math.isqrt(width) if factor == -1 else min(factor, math.isqrt(width))
    smaller = next(part for part in range(largest, 0, -1) if width % part == 0)
    return smaller, width // smaller


class LoKrBranch(LinearBranch):
    """The factors C and D, each whole or as a product of two, by their endings in files, and the factor on C ⊗ D."""

    def __init__(self, factors: dict[str, nn.Parameter], scale: float) -> None:
        super().__init__()
        self.factors = nn.ParameterDict(factors)
        self.scale = scale

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """The factors under peft's names."""
        return dict(self.factors.items())

    def factor(self, name: str) -> Tensor:
        """One factor as a whole matrix, fp32."""
        tensors = self.tensors
        return tensors[name] if name in tensors else tensors[f"{name}_a"] @ tensors[f"{name}_b"]

    def forward(self, x_NI: Tensor, layer: AdaptedLinear, run: Run) -> Tensor:
        """x Wᵀ + c + s · x (C ⊗ D)ᵀ."""
        y_NO = layer.product(x_NI)
        side_NO = kron_linear(x_NI, self.factor("lokr_w1"), self.scale * self.factor("lokr_w2"))
        return y_NO + side_NO.to(y_NO.dtype)

    def merged(self, weight_OI: Tensor, bias_O: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W + s C ⊗ D."""
        return weight_OI + torch.kron(self.factor("lokr_w1"), self.scale * self.factor("lokr_w2")), bias_O
