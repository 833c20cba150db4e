"""Compacter: bottlenecks whose projections are sums of Kronecker products of shared rules and rank-one matrices.

Karimi Mahabadi et al. 2021, https://arxiv.org/abs/2106.04647:  u' = u + f(u),  f(z) = up(σ(down(z))),  σ GELU (tanh),
each projection x ↦ x Hmat + c with Hmat = Σ_{k=1..M} A_k ⊗ (S_k T_k). The rules A (M, M, M) are one tensor for all
projections of all layers; S (M, I/M, R) and T (M, R, O/M) belong to one. Compacter adapts attention and feed-forward,
Compacter++ the feed-forward only.

A starts normal with σ = 10⁻⁴, S and T Glorot-uniform with gain √2, c zero, as in the paper's code; so the adapted model
begins within about 10⁻⁷ of the base. That code also trains every layer norm; here the adapters train alone.

Merges: no. Deep backward: yes, to the lowest adapter. Over 4 bits: yes. Identity at the start: near, not exact.
Trainable numbers: K (2 R (D + H) + D + H) + M³, K = the number of sublayers.
Shapes: N tokens, I inputs, O outputs, D width of the model, H width of the bottleneck, M blocks, R rank.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from luthier.errors import RecipeError
from luthier.methods.adapter import AdapterAttachment, AdapterMethod, generator_of, trainable
from luthier.methods.adapter_files import OwnForm
from luthier.methods.bottleneck import matrices_and_biases
from luthier.methods.contract import Group, Kin, Traits
from luthier.methods.sublayers import AddedMap, End, SerialBranch, Sublayer, sublayer_ends, with_branches
from luthier.models.language_model import LanguageModel
from luthier.ops.gated import activate
from luthier.ops.hypercomplex import kronecker_product, kronecker_product_reference

RULES = "phm_rule"
"""What files call the rules that all projections share."""


class Compacter(AdapterMethod):
    """Hypercomplex bottlenecks in series with the sublayers."""

    family: ClassVar[Kin] = "adapter"
    paper: ClassVar[str] = "https://arxiv.org/abs/2106.04647"
    count: ClassVar[str] = "K (2 R (D + H) + D + H) + M³, K = adapted sublayers, D = width, H = bottleneck"
    traits: ClassVar[Traits] = Traits(merges=False, deep_backward=True, over_4bit=True, identity_at_start=True)
    default_lr: ClassVar[float] = 3e-3
    form: ClassVar[OwnForm] = OwnForm("compacter")

    kind: Literal["compacter"] = "compacter"
    plus: bool = Field(False, description="Adapt the feed-forward only (Compacter++).")
    width: int = Field(24, ge=1, description="Width of the bottleneck, a multiple of blocks.")
    blocks: int = Field(
        4, ge=1, description="M: how many Kronecker terms there are, and blocks that each side is cut into."
    )
    rank: int = Field(1, ge=1, description="Rank of each term's second factor.")
    layers: tuple[int, ...] | None = Field(
        None,
        description="Only in these transformer layers, counted from 0 (an encoder's first, then its decoder's); unset: in all.",
    )

    @model_validator(mode="after")
    def _width_is_cut_evenly(self) -> Self:
        if self.width % self.blocks:
            raise ValueError(f"width is {self.width}, which {self.blocks} blocks do not divide; change one of them.")
        return self

    def place(self, model: LanguageModel, name: str, seed: int, fast: bool) -> AdapterAttachment:
        """A fresh bottleneck after every chosen sublayer, over one set of rules."""
        sublayers: tuple[Sublayer, ...] = ("feedforward",) if self.plus else ("attention", "feedforward")
        ends = sublayer_ends(model, self.layers, sublayers)
        self._check_widths(ends)
        draw_MMM = torch.randn(self.blocks, self.blocks, self.blocks, generator=generator_of(RULES, seed))
        rule_MMM = trainable(draw_MMM * 1e-4, model.device)
        branches = {end.place: SerialBranch(self.fresh(end, rule_MMM, seed, fast=fast), end.factor) for end in ends}
        layers = with_branches(model, name, branches)
        return AdapterAttachment(self, model, name, layers, shared={RULES: rule_MMM})

    def grouped(self, tensors: dict[str, nn.Parameter]) -> tuple[Group, ...]:
        """Matrices, and biases, which do not decay."""
        return matrices_and_biases(tensors)

    def fresh(self, end: End, rule_MMM: nn.Parameter, seed: int, *, fast: bool = True) -> HypercomplexBottleneck:
        """A bottleneck for a sublayer's end over these rules, its random start decided by the seed and the place's name."""
        generator = generator_of(end.place, seed)
        down = HypercomplexLinear(rule_MMM, *self._factors(end.width, self.width, generator), fast)
        up = HypercomplexLinear(rule_MMM, *self._factors(self.width, end.width, generator), fast)
        return HypercomplexBottleneck(down, up)

    def _factors(self, inputs: int, outputs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """S and T of a projection, Glorot-uniform with gain √2 within each term."""
        left = glorot(self.blocks, inputs // self.blocks, self.rank, generator)
        return left, glorot(self.blocks, self.rank, outputs // self.blocks, generator)

    def _check_widths(self, ends: tuple[End, ...]) -> None:
        for end in ends:
            if end.width % self.blocks:
                raise RecipeError(
                    f"{self.blocks} blocks do not divide the model's width, {end.width}.",
                    f"Set method.blocks to a divisor of {math.gcd(end.width, self.width)} or change method.width too.",
                    field="method.blocks",
                )


def glorot(terms: int, rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Random matrices (terms, rows, columns), uniform within √2 · √(6 / (rows + columns))."""
    bound = math.sqrt(12 / (rows + columns))
    return (torch.rand(terms, rows, columns, generator=generator) * 2 - 1) * bound


class HypercomplexLinear(nn.Module):
    """x ↦ x Hmat + c, over rules that belong to all."""

    def __init__(self, rule_MMM: nn.Parameter, left_MPR: Tensor, right_MRQ: Tensor, fast: bool) -> None:
        super().__init__()
        device = rule_MMM.device
        self.rule_MMM = rule_MMM
        self.left_MPR, self.right_MRQ = trainable(left_MPR, device), trainable(right_MRQ, device)
        self.bias_O = trainable(torch.zeros(right_MRQ.shape[0] * right_MRQ.shape[2]), device)
        self.fast = fast

    def forward(self, x_NI: Tensor) -> Tensor:
        """The projection, in the dtype of x."""
        product = kronecker_product if self.fast else kronecker_product_reference
        return product(x_NI, self.rule_MMM, self.left_MPR, self.right_MRQ) + self.bias_O.to(x_NI.dtype)


class HypercomplexBottleneck(AddedMap):
    """f with both projections hypercomplex."""

    def __init__(self, down: HypercomplexLinear, up: HypercomplexLinear) -> None:
        super().__init__()
        self.down, self.up = down, up

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """The factors and biases of both projections; the rules belong to all."""
        return {
            f"adapter_{side}.{ending}": tensor
            for side, linear in (("down", self.down), ("up", self.up))
            for ending, tensor in (("W_left", linear.left_MPR), ("W_right", linear.right_MRQ), ("bias", linear.bias_O))
        }

    def forward(self, z_ND: Tensor) -> Tensor:
        """f(z)."""
        narrow_NH: Tensor = self.down(z_ND)
        y_ND: Tensor = self.up(activate(narrow_NH, "gelu_tanh"))
        return y_ND
