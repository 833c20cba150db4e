"""OFT: rotate the inputs of frozen weights, block by block.

Qiu et al. 2023, https://arxiv.org/abs/2306.07280; the input-side form is OFTv2, Qiu et al. 2025,
https://arxiv.org/abs/2506.19847 (number from memory):  y = (x R) Wᵀ + c, which is a layer with the weight W Rᵀ.
R is block-diagonal with K blocks of width B. Each is the Cayley transform of a skew-symmetric Q, whose B (B − 1) / 2
entries above the diagonal are learned from 0 on:  R = (I + Q) (I − Q)⁻¹, which is exactly orthogonal. With `neumann_terms`
n, OFTv2's approximation by a series:  R ≈ I + 2 Q + … + 2 Q^(n−2) + Q^(n−1), which is orthogonal only near Q = 0.

peft's exact transform is (I − Q) (I + Q)⁻¹, the other way round than its series, so files of the exact form hold −Q.

Merges: yes. Deep backward: yes, to the lowest adapted layer. Over 4 bits: yes. Identity at the start: exact.
Trainable numbers: Σ (I / B) B (B − 1) / 2 over the adapted layers; with `shared`, Σ B (B − 1) / 2.
Shapes: N tokens, I inputs, O outputs, K blocks, B width of a block, E entries above the diagonal of a block.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from luthier.errors import RecipeError
from luthier.methods.adapter import LayerMethod, linear_of, trainable
from luthier.methods.bank import AdaptedLayer, AdaptedLinear, Branch, LinearBranch
from luthier.methods.contract import Kin, Traits
from luthier.methods.peft_files import PeftForm
from luthier.models.call import Run

_ENTRIES = "oft_R.weight"


@dataclass(frozen=True)
class OFTForm(PeftForm):
    """peft's OFT, whose config has 0 for whichever of block width and number of blocks follows from the other."""

    def settings_of(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Our settings, but for the targets, from peft's config."""
        is_series = bool(config.get("use_cayley_neumann", True))
        if is_series and _version(config) < (0, 18):
            raise RecipeError(
                "The adapter was written by peft before 0.18, whose series for the rotation was another.",
                "Merge it into its base with the tool that made it, and begin from the merged model.",
                field="use_cayley_neumann",
            )
        return {
            "block_size": config.get("oft_block_size") or None,
            "num_blocks": config.get("r") or None,
            "shared": bool(config.get("block_share")),
            "neumann_terms": config.get("num_cayley_neumann_terms", 5) if is_series else None,
        }

    def config_of(self, settings: dict[str, Any]) -> dict[str, Any]:
        """peft's config fields from our settings."""
        terms = settings["neumann_terms"]
        return {
            "oft_block_size": settings["block_size"] or 0,
            "r": settings["num_blocks"] or 0,
            "block_share": settings["shared"],
            "use_cayley_neumann": terms is not None,
            "num_cayley_neumann_terms": 5 if terms is None else terms,
        }


def _version(config: dict[str, Any]) -> tuple[int, int]:
    """The first two numbers of the version of peft that wrote a config; zeros if it does not say."""
    found = re.match(r"(\d+)\.(\d+)", str(config.get("peft_version")))
    return (0, 0) if found is None else (int(found[1]), int(found[2]))


class OFT(LayerMethod):
    """Rotations of what frozen layers take."""

    family: ClassVar[Kin] = "low-rank"
    paper: ClassVar[str] = "https://arxiv.org/abs/2306.07280"
    count: ClassVar[str] = "Σ (I / B) B (B − 1) / 2 over the adapted layers, B the block size; one block each if shared"
    traits: ClassVar[Traits] = Traits(merges=True, deep_backward=True, over_4bit=True, identity_at_start=True)
    default_lr: ClassVar[float] = 5e-4
    form: ClassVar[OFTForm] = OFTForm(
        title="OFT",
        peft_type="OFT",
        fields={},
        endings=(_ENTRIES,),
        allowed={"bias": (None, "none"), "coft": (None, False)},
        # peft 0.18 wrote the series as here; it warns of files that name no version
        constants={"bias": "none", "coft": False, "init_weights": True, "peft_version": "0.18.0"},
    )

    kind: Literal["oft"] = "oft"
    block_size: int | None = Field(
        None, ge=2, description="Width of a rotated block; the nearest divisor of a layer's inputs is taken. Unset: 32."
    )
    num_blocks: int | None = Field(
        None, ge=1, description="Instead of block_size: how many blocks; the nearest divisor of the inputs is taken."
    )
    shared: bool = Field(False, description="Whether the blocks of a layer share one rotation.")
    neumann_terms: int | None = Field(
        None,
        ge=4,
        le=64,
        description="Approximate the rotation by this many terms of a series, which needs no linear solve; unset: exact.",
    )

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.block_size is not None and self.num_blocks is not None:
            raise ValueError("block_size and num_blocks are both set, but each follows from the other; leave one out.")
        return self

    def branch(self, layer: AdaptedLayer, generator: torch.Generator, fast: bool) -> Branch:
        """Q = 0. Raises RecipeError if the layer's inputs make no blocks wider than 1."""
        linear = linear_of(layer, self.kind)
        inputs = linear.shape[1]
        if self.num_blocks is None:
            width = nearest_divisor(inputs, self.block_size or 32)
        else:
            width = inputs // nearest_divisor(inputs, self.num_blocks)
        if width == 1:
            raise RecipeError(
                f"{layer.name} has {inputs} inputs, of which this makes blocks of one input each: nothing to rotate.",
                "Choose a larger method.block_size or fewer method.num_blocks, or other targets.",
                field="method.block_size" if self.num_blocks is None else "method.num_blocks",
            )
        blocks = 1 if self.shared else inputs // width
        q_KE = trainable(torch.zeros(blocks, width * (width - 1) // 2), linear.device)
        return OFTBranch(q_KE, width, self.neumann_terms)

    def file_settings(self) -> dict[str, Any]:
        """As for any adapter, with the block size settled."""
        block_size = 32 if self.block_size is None and self.num_blocks is None else self.block_size
        return {**super().file_settings(), "block_size": block_size}


def nearest_divisor(width: int, wanted: int) -> int:
    """The divisor of the width that is nearest to a number; the smaller of two that are equally near."""
    divisors = [number for number in range(1, width + 1) if width % number == 0]
    return min(divisors, key=lambda number: (abs(number - wanted), number))


def skew(q_KE: Tensor, width: int) -> Tensor:
    """Q (K, B, B) from its entries above the diagonal, row by row."""
    rows_E, columns_E = torch.triu_indices(width, width, 1, device=q_KE.device)
    upper_KBB = q_KE.new_zeros(len(q_KE), width, width)
    upper_KBB = upper_KBB.index_put((torch.arange(len(q_KE), device=q_KE.device)[:, None], rows_E, columns_E), q_KE)
    return upper_KBB - upper_KBB.transpose(1, 2)


def cayley_turn(q_KBB: Tensor) -> Tensor:
    """R − I = 2 Q (I − Q)⁻¹, so that a small rotation is not rounded away beside the I."""
    identity_BB = torch.eye(q_KBB.shape[-1], dtype=q_KBB.dtype, device=q_KBB.device)
    turn_KBB: Tensor = torch.linalg.solve(identity_BB - q_KBB, 2 * q_KBB)  # Q and (I − Q)⁻¹ commute
    return turn_KBB


def neumann_turn(q_KBB: Tensor, terms: int) -> Tensor:
    """R − I by the series:  2 Q + 2 Q² + … + 2 Q^(n−2) + Q^(n−1)."""
    powers = [q_KBB]
    while len(powers) < terms - 1:
        powers.append(powers[-1] @ q_KBB)
    return 2 * torch.stack(powers[:-1]).sum(0) + powers[-1]


def turned(x_NI: Tensor, turn_KBB: Tensor) -> Tensor:
    """x R for a block-diagonal R that is given by R − I, in the number format of x; one block serves all."""
    width = turn_KBB.shape[-1]
    x_NKB = x_NI.view(len(x_NI), x_NI.shape[1] // width, width)
    turn_KBB = turn_KBB.to(x_NI.dtype).expand(x_NKB.shape[1], width, width)
    return x_NI + torch.einsum("nkb,kbc->nkc", x_NKB, turn_KBB).reshape(x_NI.shape)


class OFTBranch(LinearBranch):
    """The entries of Q above the diagonal, (K, E); K is 1 where blocks share them."""

    def __init__(self, q_KE: nn.Parameter, width: int, neumann_terms: int | None) -> None:
        super().__init__()
        self.q_KE, self.width, self.neumann_terms = q_KE, width, neumann_terms

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """The entries under peft's name."""
        return {_ENTRIES: self.q_KE}

    def file_tensors(self) -> dict[str, Tensor]:
        """The entries that give peft the same rotation."""
        return {_ENTRIES: self._as_in_peft(self.q_KE.detach())}

    @torch.no_grad()
    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over the entries."""
        self.q_KE.copy_(self._as_in_peft(tensors[_ENTRIES]))

    def _as_in_peft(self, q_KE: Tensor) -> Tensor:
        """Our entries as peft's, or peft's as ours."""
        return -q_KE if self.neumann_terms is None else q_KE

    def turn(self) -> Tensor:
        """R − I, shape (K, B, B)."""
        q_KBB = skew(self.q_KE, self.width)
        return cayley_turn(q_KBB) if self.neumann_terms is None else neumann_turn(q_KBB, self.neumann_terms)

    def forward(self, x_NI: Tensor, layer: AdaptedLinear, run: Run) -> Tensor:
        """(x R) Wᵀ + c."""
        return layer.product(turned(x_NI, self.turn()))

    def merged(self, weight_OI: Tensor, bias_O: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W Rᵀ: the rows of W turned back."""
        return turned(weight_OI, self.turn().transpose(1, 2)), bias_O
