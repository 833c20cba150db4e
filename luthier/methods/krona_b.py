"""KronA^B and KronA^B_res: a Kronecker product in parallel with each whole feed-forward block.

Edalati et al. 2022, https://arxiv.org/abs/2212.10650:  y = FFN(x) + s · x (A ⊗ B)ᵀ, and with a residual  + r x.
x is what enters the block (after a norm that comes first) and y what leaves it (before a norm that comes last). A (P, P) is
the outer and B (S, S) the inner factor, D = P S split as evenly as it goes; s is a chosen number, r a learned one. There is
no public code: the formulas are as others quote the paper; that B and r start at 0, and the factors' shapes, are our choices.

The block's input is known where it begins only, so a branch at its first layer notes it in the call, for the one at its
last layer.

Merges: no, since it goes past a nonlinear block. Deep backward: yes, to the lowest adapted layer. Over 4 bits: yes.
Identity at the start: exact.
Trainable numbers: P² + S² in each adapted layer, and 1 more with the residual.
Shapes: N tokens, D width of the model, F width of the block; P, S sides of the factors.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from luthier.methods.adapter import AdapterMethod, adapted_layers, generator_of, linear_of, trainable
from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.methods.adapter_files import OwnForm
from luthier.methods.bank import AdaptedLinear, LinearBranch
from luthier.methods.contract import Kin, Traits
from luthier.methods.loha import uniform
from luthier.methods.lokr import FACTOR_HELP, checked_factor, kron_shapes
from luthier.methods.sublayers import NoteBranch
from luthier.models.anatomy import chosen_layers, find_targets
from luthier.models.call import Run, current_call
from luthier.models.language_model import LanguageModel
from luthier.ops.kronecker import kron_linear


class KronAB(AdapterMethod):
    """Kronecker products beside whole feed-forward blocks."""

    family: ClassVar[Kin] = "adapter"
    paper: ClassVar[str] = "https://arxiv.org/abs/2212.10650"
    count: ClassVar[str] = "P² + S² in each adapted layer, D = P S; 1 more with the residual"
    traits: ClassVar[Traits] = Traits(merges=False, deep_backward=True, over_4bit=True, identity_at_start=True)
    default_lr: ClassVar[float] = 1e-3
    form: ClassVar[OwnForm] = OwnForm("krona-b")

    kind: Literal["krona-b"] = "krona-b"
    layers: tuple[int, ...] | None = Field(
        None,
        description="Only in these transformer layers, counted from 0 (an encoder's first, then its decoder's); unset: in all.",
    )
    scale: float = Field(1.0, gt=0, description="Strength: the factor on the product.")
    residual: bool = Field(False, description="Whether a learned multiple of the block's input is added too.")
    factor: int = Field(-1, description=FACTOR_HELP)

    @field_validator("factor")
    @classmethod
    def _factor_divides(cls, factor: int) -> int:
        return checked_factor(factor)

    def place(self, model: LanguageModel, name: str, seed: int, fast: bool) -> AdapterAttachment:
        """A noting branch at the beginning and an adding one at the end of every feed-forward block."""
        for block in chosen_layers(model.anatomy, self.layers):
            assert block.down  # refused where a feed-forward has no one end
        starts, ends = (find_targets(model.anatomy, (f"role:{role}",), self.layers) for role in ("up", "down"))
        layers = adapted_layers(model, (*starts, *ends))
        for start, end in zip(starts, ends, strict=True):
            layers[start].add(name, NoteBranch(end, "input"))
            last = linear_of(layers[end], self.kind)
            last.add(name, self._branch(last, generator_of(end, seed)))
        return AdapterAttachment(self, model, name, layers)

    def _branch(self, last: AdaptedLinear, generator: torch.Generator) -> KronABBranch:
        """A Kaiming-uniform with a = √5, B and r zero."""
        width, device = last.shape[0], last.device
        outer, inner = kron_shapes(width, width, self.factor)
        a_PP, b_SS = trainable(uniform(*outer, generator), device), trainable(torch.zeros(inner), device)
        residual = trainable(torch.zeros(1), device) if self.residual else None
        return KronABBranch(a_PP, b_SS, residual, self.scale)


class KronABBranch(LinearBranch):
    """A (P, P), B (S, S), the factor on A ⊗ B, and the factor r on the block's input, if there is one."""

    def __init__(self, a_PP: nn.Parameter, b_SS: nn.Parameter, residual: nn.Parameter | None, scale: float) -> None:
        super().__init__()
        self.a_PP, self.b_SS, self.residual = a_PP, b_SS, residual
        self.scale = scale

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """The factors, and r."""
        factors = {"krona_a": self.a_PP, "krona_b": self.b_SS}
        return factors if self.residual is None else {**factors, "krona_residual": self.residual}

    def forward(self, h_NF: Tensor, layer: AdaptedLinear, run: Run) -> Tensor:
        """FFN(x) + s · x (A ⊗ B)ᵀ + r x, of which the block's last layer gives the first."""
        x_ND = current_call().notes.pop((layer.name, run.start))
        side_ND = kron_linear(x_ND, self.a_PP, self.scale * self.b_SS)
        if self.residual is not None:
            side_ND = side_ND + self.residual.to(x_ND.dtype) * x_ND
        y_ND = layer.product(h_NF)
        return y_ND + side_ND.to(y_ND.dtype)
