"""BOFT: rotate the inputs of frozen weights by a product of sparse rotations, and scale the outputs.

Liu et al. 2023, https://arxiv.org/abs/2311.06243:  y = σ ⊙ ((x R) Wᵀ) + c,  R = R_m … R₂ R₁,
which is a layer with the weight diag(σ) W Rᵀ. Each R_j is block-diagonal after a reordering, R_j = P_j diag(C₁ … C_K) P_jᵀ
with C = (I − S) (I + S)⁻¹ and S = (X − Xᵀ) / 2 from a learned X that starts at 0; σ starts at 1. The reorderings are
those of a butterfly: R₁ takes neighbouring inputs as they are, and a block of R_j is made of two half blocks whose places
among the half blocks are 2^(j−1) apart, so that after m factors each input reaches 2^(m−1) blocks' worth of others.
With one factor this is OFT with a scale.

peft has the same files, but takes one factor only where its CUDA extension is missing, whatever the file says.

Merges: yes. Deep backward: yes, to the lowest adapted layer. Over 4 bits: yes. Identity at the start: exact.
Trainable numbers: Σ m (I / B) B² + O over the adapted layers (of a B × B block, B (B − 1) / 2 have an effect).
Shapes: N tokens, I inputs, O outputs, M factors, K blocks, B width of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from luthier.errors import RecipeError
from luthier.methods.adapter import LayerMethod, linear_of, trainable
from luthier.methods.bank import AdaptedLayer, AdaptedLinear, Branch, LinearBranch
from luthier.methods.contract import Kin, Traits
from luthier.methods.oft import cayley_turn, turned
from luthier.methods.peft_files import PeftForm
from luthier.models.call import Run


@dataclass(frozen=True)
class BOFTForm(PeftForm):
    """peft's BOFT, whose config has 0 for whichever of block width and number of blocks follows from the other."""

    def settings_of(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Our settings, but for the targets; the tensors tell the factors, for peft's config may name more."""
        factors = {len(tensor) for name, tensor in tensors.items() if name.endswith(".boft_R")}
        return {
            "block_size": config.get("boft_block_size") or None,
            "num_blocks": config.get("boft_block_num") or None,
            "factors": max(factors, default=1),
        }

    def config_of(self, settings: dict[str, Any]) -> dict[str, Any]:
        """peft's config fields from our settings."""
        return {
            "boft_block_size": settings["block_size"] or 0,
            "boft_block_num": settings["num_blocks"] or 0,
            "boft_n_butterfly_factor": settings["factors"],
        }


class BOFT(LayerMethod):
    """Rotations of what frozen layers take, each a product of sparse ones, and scales of what they give."""

    family: ClassVar[Kin] = "low-rank"
    paper: ClassVar[str] = "https://arxiv.org/abs/2311.06243"
    count: ClassVar[str] = "Σ m (I / B) B² + O over the adapted layers, B the block size, m the factors"
    traits: ClassVar[Traits] = Traits(merges=True, deep_backward=True, over_4bit=True, identity_at_start=True)
    default_lr: ClassVar[float] = 5e-4
    form: ClassVar[BOFTForm] = BOFTForm(
        title="BOFT",
        peft_type="BOFT",
        fields={},
        endings=("boft_R", "boft_s"),
        allowed={"bias": (None, "none")},
        constants={"bias": "none", "init_weights": True},
    )

    kind: Literal["boft"] = "boft"
    block_size: int | None = Field(
        None, ge=2, description="Width of a rotated block, which must divide the inputs of every layer. Unset: 8."
    )
    num_blocks: int | None = Field(
        None, ge=1, description="Instead of block_size: how many blocks, which must divide the inputs of every layer."
    )
    factors: int = Field(
        2, ge=1, le=16, description="How many sparse rotations are multiplied; each further one doubles what is mixed."
    )

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.block_size is not None and self.num_blocks is not None:
            raise ValueError("block_size and num_blocks are both set, but each follows from the other; leave one out.")
        return self

    def branch(self, layer: AdaptedLayer, generator: torch.Generator, fast: bool) -> Branch:
        """X = 0, σ = 1. Raises RecipeError if the layer's inputs cannot be split so."""
        linear = linear_of(layer, self.kind)
        (outputs, inputs), device = linear.shape, linear.device
        width = (self.block_size or 8) if self.num_blocks is None else max(inputs // self.num_blocks, 1)
        self._check_splits(layer.name, inputs, width)
        x_MKBB = trainable(torch.zeros(self.factors, inputs // width, width, width), device)
        return BOFTBranch(x_MKBB, trainable(torch.ones(outputs, 1), device))

    def file_settings(self) -> dict[str, Any]:
        """As for any adapter, with the block size settled."""
        block_size = 8 if self.block_size is None and self.num_blocks is None else self.block_size
        return {**super().file_settings(), "block_size": block_size}

    def _check_splits(self, name: str, inputs: int, width: int) -> None:
        reach = width * 2 ** (self.factors - 1)
        field = "method.block_size" if self.num_blocks is None else "method.num_blocks"
        if self.num_blocks is not None and inputs % self.num_blocks != 0:
            raise RecipeError(
                f"{name} has {inputs} inputs, which do not make {self.num_blocks} equal blocks.",
                "Choose a number that divides the inputs of every layer, or other targets.",
                field=field,
            )
        if inputs % reach != 0 or (self.factors > 1 and width % 2 != 0):
            raise RecipeError(
                f"{name} has {inputs} inputs; {self.factors} factors of blocks of {width} need an even block width "
                f"(with more than one factor) and a multiple of {reach} inputs.",
                "Choose a smaller method.block_size, fewer method.factors, or other targets.",
                field=field,
            )


class BOFTBranch(LinearBranch):
    """X (M, K, B, B), and σ (O, 1)."""

    def __init__(self, x_MKBB: nn.Parameter, scale_O1: nn.Parameter) -> None:
        super().__init__()
        self.x_MKBB, self.scale_O1 = x_MKBB, scale_O1

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """X and σ under peft's names."""
        return {"boft_R": self.x_MKBB, "boft_s": self.scale_O1}

    def turns(self) -> Tensor:
        """C − I of every block, shape (M, K, B, B)."""
        return cayley_turn((self.x_MKBB.transpose(2, 3) - self.x_MKBB) / 2)  # −S, since C = (I − S) (I + S)⁻¹

    def forward(self, x_NI: Tensor, layer: AdaptedLinear, run: Run) -> Tensor:
        """σ ⊙ ((x R) Wᵀ) + c; σ in fp32, since bf16 knows no number between 0.996 and 1.008 but 1."""
        turns_MKBB = self.turns()
        for level in reversed(range(len(turns_MKBB))):
            x_NI = butterfly(x_NI, turns_MKBB[level], level)
        y_NO = layer.product(x_NI)
        scale_O = self.scale_O1[:, 0]
        scaled_NO = y_NO * scale_O if layer.bias is None else y_NO * scale_O + layer.bias * (1 - scale_O)
        return scaled_NO.to(y_NO.dtype)

    def merged(self, weight_OI: Tensor, bias_O: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """diag(σ) W Rᵀ: the rows of W turned back, the last rotation first."""
        back_MKBB = self.turns().transpose(2, 3)
        for level in range(len(back_MKBB)):
            weight_OI = butterfly(weight_OI, back_MKBB[level], level)
        return weight_OI * self.scale_O1, bias_O


def butterfly(x_NI: Tensor, turn_KBB: Tensor, level: int) -> Tensor:
    """x P diag(C₁ … C_K) Pᵀ, the C given by C − I: blocks of two half blocks that are 2^level of them apart."""
    if level == 0:
        return turned(x_NI, turn_KBB)
    num_blocks, half = len(turn_KBB), turn_KBB.shape[-1] // 2
    apart = (len(x_NI), num_blocks >> level, 2, 2**level, half)
    paired_NI = x_NI.view(apart).transpose(2, 3).reshape(x_NI.shape)
    turned_NI = turned(paired_NI, turn_KBB)
    return turned_NI.view(len(x_NI), num_blocks >> level, 2**level, 2, half).transpose(2, 3).reshape(x_NI.shape)
