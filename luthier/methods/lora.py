"""LoRA: learn a low-rank change of frozen weights.

Hu et al. 2021, https://arxiv.org/abs/2106.09685:  y = x Wᵀ + c + s · drop(x) Aᵀ Bᵀ,  s = α / R,  B = 0 at the start.
rsLoRA, Kalajdzievski 2023, https://arxiv.org/abs/2312.03732, takes s = α / √R, so that large ranks keep learning.
LoRA+, Hayou et al. 2024, https://arxiv.org/abs/2402.12354, gives B a learning rate λ times that of A.

`all-linear` is every linear layer inside the transformer layers, those of every expert of a mixture among them; routers, the
head, and what stands outside them otherwise (project_in and project_out of OPT-350m), stay as they are.

Merges: yes. Deep backward: yes, to the lowest adapted layer. Over 4 bits: yes. Identity at the start: exact.
Trainable numbers: Σ R (I + O) over the adapted layers (an embedding counts I = V, O = D).
Shapes: I inputs, O outputs, R rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from luthier.methods.adapter import LayerMethod, trainable
from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.methods.bank import AdaptedEmbedding, AdaptedLayer, AdaptedLinear, Branch
from luthier.methods.contract import Group, Kin, Traits
from luthier.methods.lora_layers import LoRABranch, LoRAEmbeddingBranch
from luthier.methods.patterns import match_pattern
from luthier.methods.peft_files import PeftForm
from luthier.models.language_model import LanguageModel
from luthier.ops.spectrum import Factors

LORA_FORM = PeftForm(
    title="plain LoRA",
    peft_type="LORA",
    fields={
        "rank": "r",
        "alpha": "lora_alpha",
        "dropout": "lora_dropout",
        "rslora": "use_rslora",
        "rank_pattern": "rank_pattern",
        "alpha_pattern": "alpha_pattern",
    },
    required=("r", "lora_alpha"),
    missing={"dropout": 0.0, "rslora": False, "rank_pattern": {}, "alpha_pattern": {}},
    endings=("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B"),
    allowed={
        "bias": (None, "none"),
        "use_dora": (None, False),
        "lora_bias": (None, False),
        "use_qalora": (None, False),
        "use_bdlora": (None, False),
        "target_parameters": (None, []),
        "layer_replication": (None, []),
        "alora_invocation_tokens": (None, []),
        "arrow_config": (None,),
        "kasa_config": (None,),
        "monteclora_config": (None,),
        "velora_config": (None,),
        "init_lora_weights": (None, True, False, "gaussian", "orthogonal", "eva"),
    },
    constants={"bias": "none", "init_lora_weights": True},
    has_rows=True,
    stacks=True,
)


class LowRank(LayerMethod):
    """What LoRA and the methods built on it set alike: ranks, strengths, and the rate of B.

    alpha_over_rank: the strength that an unset `alpha` stands for, as a multiple of the rank.
    """

    family: ClassVar[Kin] = "low-rank"
    alpha_over_rank: ClassVar[float] = 2.0
    free_fields: ClassVar[frozenset[str]] = frozenset({"dropout", "lr_ratio"})

    rank: int = Field(16, ge=1, description="Rank of each update.")
    alpha: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Strength: the update is scaled by alpha / rank. Unset: twice the rank.",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of the branch's inputs dropped in training.")
    rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) instead.")
    rank_pattern: dict[str, int] = Field(
        {},
        description="Other ranks for some layers: a name's last parts, or a regular expression for them, and the rank.",
    )
    alpha_pattern: dict[str, float] = Field({}, description="Other strengths for some layers, in the same way.")
    lr_ratio: float = Field(
        1.0, ge=1, allow_inf_nan=False, description="Learning rate of B over that of A (LoRA+; the paper suggests 16)."
    )

    @model_validator(mode="after")
    def _patterns_are_sound(self) -> Self:
        for pattern in (*self.rank_pattern, *self.alpha_pattern):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"The pattern {pattern!r} is not a regular expression: {error}.") from error
        if any(rank < 1 for rank in self.rank_pattern.values()):
            raise ValueError("rank_pattern holds a rank below 1; leave a layer out with targets or layers instead.")
        if not all(0 < alpha < math.inf for alpha in self.alpha_pattern.values()):
            raise ValueError("alpha_pattern holds a strength that is not a number above 0.")
        return self

    def rank_of(self, layer: str) -> int:
        """The rank of the update of a layer, by its dotted name."""
        return match_pattern(self.rank_pattern, layer, self.rank)

    def scale_of(self, layer: str) -> float:
        """The factor s of the update of a layer."""
        alpha, rank = match_pattern(self.alpha_pattern, layer, self._alpha), self.rank_of(layer)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def grouped(self, tensors: dict[str, nn.Parameter]) -> tuple[Group, ...]:
        """One group; with LoRA+ the B apart."""
        if self.lr_ratio == 1:
            return (Group(tensors),)
        b = {name: tensor for name, tensor in tensors.items() if name.endswith((".lora_B.weight", ".lora_embedding_B"))}
        others = {name: tensor for name, tensor in tensors.items() if name not in b}
        return Group(others), Group(b, lr_factor=self.lr_ratio)

    def file_settings(self) -> dict[str, Any]:
        """As for any adapter, with the strength settled."""
        return {**super().file_settings(), "alpha": self._alpha}

    @property
    def _alpha(self) -> float:
        return self.alpha_over_rank * self.rank if self.alpha is None else self.alpha


class LoRA(LowRank):
    """Low-rank updates of chosen layers."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2106.09685"
    count: ClassVar[str] = "Σ R (I + O) over the adapted layers"
    traits: ClassVar[Traits] = Traits(merges=True, deep_backward=True, over_4bit=True, identity_at_start=True)
    default_lr: ClassVar[float] = 2e-4
    form: ClassVar[PeftForm] = LORA_FORM

    kind: Literal["lora"] = "lora"
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear",
        description="Layers to adapt, by the last parts of their names; all-linear is every linear layer but the head. The embedding and the head can be named too.",
    )

    def branch(self, layer: AdaptedLayer, generator: torch.Generator, fast: bool) -> Branch:
        """A random, B zero; at an embedding the other way round, as in peft."""
        rank, scale = self.rank_of(layer.name), self.scale_of(layer.name)
        if isinstance(layer, AdaptedEmbedding):
            (rows, width), device = layer.shape, layer.device
            b_DR = torch.randn(width, rank, generator=generator)
            return LoRAEmbeddingBranch(trainable(torch.zeros(rank, rows), device), trainable(b_DR, device), scale)
        assert isinstance(layer, AdaptedLinear)
        a_RI, b_OR = fresh_pair(layer, rank, generator)
        return LoRABranch(a_RI, b_OR, scale, self.dropout, fast)


def fresh_pair(layer: AdaptedLinear, rank: int, generator: torch.Generator) -> tuple[nn.Parameter, nn.Parameter]:
    """A (R, I), Kaiming-uniform with a = √5 as in the paper's code (bound 1 / √I), and B (O, R), zero."""
    (outputs, inputs), device = layer.shape, layer.device
    a_RI = (torch.rand(rank, inputs, generator=generator) * 2 - 1) / math.sqrt(inputs)
    return trainable(a_RI, device), trainable(torch.zeros(outputs, rank), device)


def lora_of_factors(model: LanguageModel, name: str, updates: Mapping[str, Factors]) -> AdapterAttachment:
    """A LoRA of scale 1 that adds these products to the weights of these layers."""
    ranks = {target: update.left_OR.shape[1] for target, update in updates.items()}
    highest = max(ranks.values())
    lower = {target: rank for target, rank in ranks.items() if rank != highest}
    strengths = {target: float(rank) for target, rank in lower.items()}
    method = LoRA(rank=highest, alpha=highest, targets=tuple(ranks), rank_pattern=lower, alpha_pattern=strengths)
    attachment = method.attach(model, name, seed=0)
    with torch.no_grad():
        for target, branch in attachment.branches.items():
            assert isinstance(branch, LoRABranch)
            branch.b_OR.copy_(updates[target].left_OR)
            branch.a_RI.copy_(updates[target].right_RI)
    return attachment
