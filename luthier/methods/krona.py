"""KronA: learn a change of frozen weights as one Kronecker product.

Edalati et al. 2022, https://arxiv.org/abs/2212.10650:  y = x Wᵀ + c + s · x (A ⊗ B)ᵀ.
A (P, Q) is the outer factor and B (S, T) the inner one, with O = P S and I = Q T, each split as evenly as it goes. The
rank of A ⊗ B is that of A times that of B, so the update may be of full rank. B = 0 at the start and A Kaiming-uniform;
s is a number that is chosen, not learned. There is no public code: the formula is as others quote the paper, the start,
the shapes and the range of s (0.25 to 16) are our choices. The paper adapts queries and values, as far as we remember.
Its forms beside a whole feed-forward block are the kind krona-b.

On disk it is peft's LoKr with both factors whole: any rank from half of the longest side of B on makes peft take them so;
alpha is s times the rank, because peft scales by alpha / rank.

Merges: yes. Deep backward: yes, to the lowest adapted layer. Over 4 bits: yes. Identity at the start: exact.
Trainable numbers: Σ P Q + S T over the adapted layers.
Shapes: N tokens, I inputs, O outputs; P, Q, S, T the sides of the factors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from luthier.methods.adapter import LayerMethod, linear_of, trainable
from luthier.methods.adapter_files import AdapterFile
from luthier.methods.bank import AdaptedLayer, AdaptedLinear, Branch, LinearBranch
from luthier.methods.contract import Kin, Traits
from luthier.methods.loha import uniform
from luthier.methods.lokr import FACTOR_HELP, checked_factor, kron_shapes
from luthier.methods.peft_files import PeftForm
from luthier.models.anatomy import Anatomy
from luthier.models.call import Run
from luthier.ops.kronecker import kron_linear


@dataclass(frozen=True)
class KronAForm(PeftForm):
    """peft's LoKr, restricted to whole factors."""

    def settings_of(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
        """The strength is what peft scales by."""
        if config["r"] == 0:
            return {**super().settings_of(config, tensors), "scale": 0.0}  # which the settings refuse by name
        return {**super().settings_of(config, tensors), "scale": config["alpha"] / config["r"]}

    def write(self, folder: Path, file: AdapterFile, anatomy: Anatomy, is_transposed: bool) -> None:
        """With the least rank at which peft takes every factor whole."""
        rank = max(max(tensor.shape) for name, tensor in file.tensors.items() if name.endswith(".lokr_w2"))
        settings = {**file.settings, "rank": rank, "alpha": file.settings["scale"] * rank}
        super().write(folder, replace(file, settings=settings), anatomy, is_transposed)

    def config_of(self, settings: dict[str, Any]) -> dict[str, Any]:
        """peft's names for what `write` settled."""
        return {**super().config_of(settings), "r": settings["rank"], "alpha": settings["alpha"]}


class KronA(LayerMethod):
    """Updates that are one Kronecker product each."""

    family: ClassVar[Kin] = "low-rank"
    paper: ClassVar[str] = "https://arxiv.org/abs/2212.10650"
    count: ClassVar[str] = "Σ P Q + S T over the adapted layers, O = P S, I = Q T"
    traits: ClassVar[Traits] = Traits(merges=True, deep_backward=True, over_4bit=True, identity_at_start=True)
    default_lr: ClassVar[float] = 1e-3
    form: ClassVar[KronAForm] = KronAForm(
        title="KronA",
        peft_type="LOKR",
        fields={"factor": "decompose_factor"},
        required=("r", "alpha"),
        missing={"factor": -1},
        endings=("lokr_w1", "lokr_w2"),
        allowed={"rank_pattern": (None, {}), "alpha_pattern": (None, {})},
        constants={"init_weights": True},
        transposes=False,
    )

    kind: Literal["krona"] = "krona"
    scale: float = Field(1.0, gt=0, description="Strength: the factor on the update.")
    factor: int = Field(-1, description=FACTOR_HELP)

    @field_validator("factor")
    @classmethod
    def _factor_divides(cls, factor: int) -> int:
        return checked_factor(factor)

    def branch(self, layer: AdaptedLayer, generator: torch.Generator, fast: bool) -> Branch:
        """A Kaiming-uniform with a = √5, B zero."""
        linear = linear_of(layer, self.kind)
        (outputs, inputs), device = linear.shape, linear.device
        outer, inner = kron_shapes(outputs, inputs, self.factor)
        a_PQ, b_ST = trainable(uniform(*outer, generator), device), trainable(torch.zeros(inner), device)
        return KronABranch(a_PQ, b_ST, self.scale)


class KronABranch(LinearBranch):
    """A (P, Q), B (S, T), and the factor on A ⊗ B."""

    def __init__(self, a_PQ: nn.Parameter, b_ST: nn.Parameter, scale: float) -> None:
        super().__init__()
        self.a_PQ, self.b_ST, self.scale = a_PQ, b_ST, scale

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """A and B under peft's names."""
        return {"lokr_w1": self.a_PQ, "lokr_w2": self.b_ST}

    def forward(self, x_NI: Tensor, layer: AdaptedLinear, run: Run) -> Tensor:
        """x Wᵀ + c + s · x (A ⊗ B)ᵀ."""
        y_NO = layer.product(x_NI)
        return y_NO + kron_linear(x_NI, self.a_PQ, self.scale * self.b_ST).to(y_NO.dtype)

    def merged(self, weight_OI: Tensor, bias_O: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W + s A ⊗ B."""
        return weight_OI + torch.kron(self.a_PQ, self.scale * self.b_ST), bias_O
