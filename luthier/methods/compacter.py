"""Compacter: bottlenecks whose projections are sums of Kronecker products of shared rules and rank-one matrices.

Karimi Mahabadi et al. 2021, https://arxiv.org/abs/2106.04647:  u' = u + f(u),  f(z) = up(σ(down(z))),  σ GELU (its tanh form),
each projection x ↦ x Hmat + c with Hmat = Σ_{k=1..M} A_k ⊗ (S_k T_k). The rules A (M, M, M) are one tensor for all
projections of all layers; S (M, I/M, R) and T (M, R, O/M) belong to one. Compacter adapts attention and feed-forward,
Compacter++ the feed-forward only.

A starts normal with σ = 10⁻⁴, S and T Glorot-uniform with gain √2, c zero, as in the paper's code; so the adapted model
begins within about 10⁻⁷ of the base. That code also trains every layer norm; here the adapters train alone.

Files are those of the `adapters` library in the architectures that it knows, Luthier's own in others. That library differs
from the paper's code in three ways: its Compacters have the exact GELU (`activation`), its Compacter++ reads the residual
sum as a Pfeiffer adapter does (`reads_sum`), and S and T begin Glorot-normal whatever its config says; the last is over
once an adapter is trained, and is not imitated. From a `T5ForConditionalGeneration` it saves an adapter without A, which is
refused here; from an `AutoAdapterModel` it saves all.

Merges: no. Deep backward: yes, to the lowest adapter. Over 4 bits: yes. Identity at the start: near, not exact.
Trainable numbers: K (2 R (D + H) + D + H) + M³, K = the number of sublayers.
Shapes: N tokens, I inputs, O outputs, D width of the model, H width of the bottleneck, M blocks, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from luthier.errors import RecipeError
from luthier.methods.adapter import generator_of, trainable
from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.methods.adapterhub_files import AdapterHubForm, activation_of, hub_activation, width_of
from luthier.methods.bank import Branch
from luthier.methods.bottleneck import SUBLAYER_FLAGS, Activation, SublayerMethod, activated
from luthier.methods.contract import Kin
from luthier.methods.pfeiffer import PfeifferBranch
from luthier.methods.sublayers import (
    AddedMap,
    End,
    SerialBranch,
    Sublayer,
    norm_of_sum,
    residual_noter,
    sublayer_ends,
    with_branches,
)
from luthier.models.language_model import LanguageModel
from luthier.ops.hypercomplex import kronecker_product, kronecker_product_reference

RULES = "phm_rule"
"""What files call the rules that all projections share."""


@dataclass(frozen=True)
class CompacterForm(AdapterHubForm):
    """Hypercomplex bottlenecks in the files of the `adapters` library."""

    free: ClassVar[tuple[str, ...]] = ("original_ln_before",)
    endings: ClassVar[Mapping[str, str]] = {
        "adapter_down.W_left": "adapter_down.0.W_left",
        "adapter_down.W_right": "adapter_down.0.W_right",
        "adapter_down.bias": "adapter_down.0.b",
        "adapter_up.W_left": "adapter_up.W_left",
        "adapter_up.W_right": "adapter_up.W_right",
        "adapter_up.bias": "adapter_up.b",
    }
    shared: ClassVar[tuple[str, ...]] = (RULES,)

    def settings_of(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
        """The shape of the projections, and where they stand."""
        return {
            "plus": not config.get(SUBLAYER_FLAGS["attention"]),
            "reads_sum": bool(config["original_ln_before"]),
            "width": width_of(tensors, ".adapter_down.0.b"),
            "blocks": config.get("phm_dim", 4),
            "rank": config.get("phm_rank", 1),
            "activation": activation_of(config),
        }

    def config_of(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The same in the library's words."""
        return {
            SUBLAYER_FLAGS["attention"]: not settings["plus"],
            "original_ln_before": settings["reads_sum"],
            "phm_dim": settings["blocks"],
            "phm_rank": settings["rank"],
            "non_linearity": hub_activation(settings["activation"]),
        }


_HUB_SHAPE: Mapping[str, object] = {
    SUBLAYER_FLAGS["cross-attention"]: False,
    SUBLAYER_FLAGS["feedforward"]: True,
    "phm_layer": True,
    "shared_phm_rule": True,
    "factorized_phm_rule": False,
    "factorized_phm_W": True,
    "shared_W_phm": False,
    "learn_phm": True,
    "phm_bias": True,
}


class Compacter(SublayerMethod):
    """Hypercomplex bottlenecks in series with the sublayers."""

    family: ClassVar[Kin] = "adapter"
    paper: ClassVar[str] = "https://arxiv.org/abs/2106.04647"
    count: ClassVar[str] = "K (2 R (D + H) + D + H) + M³, K = adapted sublayers, D = width, H = bottleneck"
    default_lr: ClassVar[float] = 3e-3
    form: ClassVar[CompacterForm] = CompacterForm("compacter", _HUB_SHAPE)

    kind: Literal["compacter"] = "compacter"
    plus: bool = Field(False, description="Adapt the feed-forward only (Compacter++).")
    width: int = Field(24, ge=1, description="Width of the bottleneck, a multiple of blocks.")
    blocks: int = Field(
        4, ge=1, description="M: how many Kronecker terms there are, and blocks that each side is cut into."
    )
    rank: int = Field(1, ge=1, description="Rank of each term's second factor.")
    activation: Activation = Field("gelu_tanh", description="The function between its two projections.")
    reads_sum: bool = Field(
        False,
        description="With plus: whether it reads the residual sum, as Compacter++ in the adapters library, and not what the feed-forward gives.",
    )

    @model_validator(mode="after")
    def _shape_is_sound(self) -> Self:
        if self.width % self.blocks:
            raise ValueError(f"width is {self.width}, which {self.blocks} blocks do not divide; change one of them.")
        if self.reads_sum and not self.plus:
            raise ValueError("reads_sum is for the feed-forward only; set plus too, or leave reads_sum out.")
        return self

    def place(self, model: LanguageModel, name: str, seed: int, fast: bool) -> AdapterAttachment:
        """A fresh bottleneck after every chosen sublayer, over one set of rules."""
        sublayers: tuple[Sublayer, ...] = ("feedforward",) if self.plus else ("attention", "feedforward")
        ends = sublayer_ends(model, self.layers, sublayers)
        self._check_widths(ends)
        draw_MMM = torch.randn(self.blocks, self.blocks, self.blocks, generator=generator_of(RULES, seed))
        rule_MMM = trainable(draw_MMM * 1e-4, model.device)
        branches: dict[str, Branch] = {}
        for end in ends:
            added = self.fresh(end, rule_MMM, seed, fast=fast)
            if self.reads_sum:
                branches[end.place] = PfeifferBranch(added, end.factor, norm_of_sum(model, end))
                start, noter = residual_noter(model, end)
                branches[start] = noter
            else:
                branches[end.place] = SerialBranch(added, end.factor)
        return AdapterAttachment(self, model, name, with_branches(model, name, branches), shared={RULES: rule_MMM})

    def fresh(self, end: End, rule_MMM: nn.Parameter, seed: int, *, fast: bool = True) -> HypercomplexBottleneck:
        """A bottleneck for a sublayer's end over these rules, its random start decided by the seed and the place's name."""
        generator = generator_of(end.place, seed)
        down = HypercomplexLinear(rule_MMM, *self._factors(end.width, self.width, generator), fast)
        up = HypercomplexLinear(rule_MMM, *self._factors(self.width, end.width, generator), fast)
        return HypercomplexBottleneck(down, up, self.activation)

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

    def __init__(self, down: HypercomplexLinear, up: HypercomplexLinear, activation: Activation) -> None:
        super().__init__()
        self.down, self.up = down, up
        self.activation: Activation = activation

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
        y_ND: Tensor = self.up(activated(narrow_NH, self.activation))
        return y_ND
