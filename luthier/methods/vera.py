"""VeRA: one pair of frozen random matrices for the whole model, and two learned vectors at each layer.

Kopiczko et al. 2023, https://arxiv.org/abs/2310.11454, equation 2:

    y = x Wᵀ + c + (drop(x) Aᵀ ⊙ d) Bᵀ ⊙ b,   that is  W' = W + diag(b) B diag(d) A,

with A (R, I) and B (O, R) the first columns and rows of a pair that is as wide as the widest adapted layer, drawn
Kaiming-uniform from a seed of their own, A first; d starts at 0.1 and b at 0. There is no other scale. The pair is drawn
as peft draws it, and lies in the file and in checkpoints: a seed may give other numbers under another torch.

Merges: yes. Deep backward: yes, to the lowest adapted layer. Over 4 bits: yes. Identity at the start: exact.
Trainable numbers: Σ (O + R) over the adapted layers.
Shapes: N tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from luthier.methods.adapter import TargetedMethod, adapted_layers, linear_of, trainable
from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.methods.adapter_files import AdapterFile
from luthier.methods.bank import AdaptedLinear, LinearBranch
from luthier.methods.contract import Kin, Traits
from luthier.methods.peft_files import PeftForm
from luthier.models.call import Run
from luthier.models.language_model import LanguageModel
from luthier.ops.spectrum import Factors


class VeRA(TargetedMethod):
    """Learned vectors around frozen random projections that all layers share."""

    family: ClassVar[Kin] = "low-rank"
    paper: ClassVar[str] = "https://arxiv.org/abs/2310.11454"
    count: ClassVar[str] = "Σ (O + R) over the adapted layers"
    traits: ClassVar[Traits] = Traits(merges=True, deep_backward=True, over_4bit=True, identity_at_start=True)
    default_lr: ClassVar[float] = 1e-2  # the paper: 1e-3 to 2e-2
    form: ClassVar[PeftForm] = PeftForm(
        title="VeRA",
        peft_type="VERA",
        fields={
            "rank": "r",
            "dropout": "vera_dropout",
            "projection_seed": "projection_prng_key",
            "d_initial": "d_initial",
        },
        required=("r",),
        missing={"dropout": 0.0, "projection_seed": 0, "d_initial": 0.1},
        endings=("vera_lambda_b", "vera_lambda_d"),
        shared=("vera_A", "vera_B"),
        allowed={"bias": (None, "none")},
        constants={"bias": "none", "save_projection": True},
    )
    free_fields: ClassVar[frozenset[str]] = frozenset({"dropout", "d_initial"})

    kind: Literal["vera"] = "vera"
    rank: int = Field(256, ge=1, description="Rank of the shared projections.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of the branch's inputs dropped in training.")
    projection_seed: int = Field(
        0, ge=0, lt=2**63, description="Decides the shared random projections, apart from the run's seed."
    )
    d_initial: float = Field(0.1, gt=0, description="What the inner vector starts at; at 0 nothing would learn.")

    def place(self, model: LanguageModel, name: str, seed: int, fast: bool) -> AdapterAttachment:
        """The shared pair, and a branch at every place. The run's seed decides nothing here."""
        layers = {t: linear_of(layer, self.kind) for t, layer in adapted_layers(model, self.places(model)).items()}
        shapes, device = [layer.shape for layer in layers.values()], next(iter(layers.values())).weight.device
        a_RI, b_OR = projections(
            max(inputs for _, inputs in shapes), max(outputs for outputs, _ in shapes), self.rank, self.projection_seed
        )
        a_RI, b_OR = a_RI.to(device), b_OR.to(device)
        for layer in layers.values():
            d_R = trainable(torch.full((self.rank,), self.d_initial), device)
            b_O = trainable(torch.zeros(layer.shape[0]), device)
            layer.add(name, VeRABranch(a_RI, b_OR, d_R, b_O, self.dropout))
        return VeRAAttachment(self, model, name, layers, frozen={"vera_A": a_RI, "vera_B": b_OR})


def projections(inputs: int, outputs: int, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """The shared A (R, I) and B (O, R): uniform within ±√(6 / fan-in), as peft draws them from the same seed."""
    generator = torch.Generator().manual_seed(seed)
    bound_a, bound_b = math.sqrt(6 / inputs), math.sqrt(6 / rank)
    a_RI = torch.empty(rank, inputs).uniform_(-bound_a, bound_a, generator=generator)
    return a_RI, torch.empty(outputs, rank).uniform_(-bound_b, bound_b, generator=generator)


class VeRABranch(LinearBranch):
    """The vectors d (R,) and b (O,) of a layer, and the pair that it shares with all others."""

    def __init__(self, a_RI: Tensor, b_OR: Tensor, d_R: nn.Parameter, b_O: nn.Parameter, drop: float) -> None:
        super().__init__()
        self.wide_a_RI, self.wide_b_OR = a_RI, b_OR  # plain tensors: as buffers each layer's could move apart
        self.d_R, self.b_O, self.drop = d_R, b_O, drop

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """The vectors under peft's names."""
        return {"vera_lambda_b": self.b_O, "vera_lambda_d": self.d_R}

    @property
    def draws(self) -> bool:
        """Whether there is dropout."""
        return self.drop > 0

    def forward(self, x_NI: Tensor, layer: AdaptedLinear, run: Run) -> Tensor:
        """x Wᵀ + c + (drop(x) Aᵀ ⊙ d) Bᵀ ⊙ b."""
        dropout, dtype = layer.dropout(self.drop, run), x_NI.dtype
        branch_NI = x_NI if dropout is None else dropout(x_NI)
        a_RI, b_OR = self._own_part(x_NI.shape[-1])
        inner_NR = F.linear(branch_NI, a_RI.to(dtype)) * self.d_R.to(dtype)
        y_NO = layer.product(x_NI)
        return y_NO + (F.linear(inner_NR, b_OR.to(dtype)) * self.b_O.to(dtype)).to(y_NO.dtype)

    def update(self, layer: AdaptedLinear) -> Factors:
        """diag(b) B · diag(d) A."""
        return self._factors(layer.shape[1])

    def merged(self, weight_OI: Tensor, bias_O: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W + diag(b) B diag(d) A."""
        return weight_OI + self._factors(weight_OI.shape[1]).dense(), bias_O

    def _own_part(self, inputs: int) -> tuple[Tensor, Tensor]:
        """The first columns of A and the first rows of B."""
        return self.wide_a_RI[:, :inputs], self.wide_b_OR[: len(self.b_O)]

    def _factors(self, inputs: int) -> Factors:
        a_RI, b_OR = self._own_part(inputs)
        return Factors(self.b_O.detach()[:, None] * b_OR, self.d_R.detach()[:, None] * a_RI)


class VeRAAttachment(AdapterAttachment):
    """VeRA at work."""

    def load(self, file: AdapterFile) -> None:
        """Take the tensors of a file; one that was saved without the pair has the pair of its seed."""
        if file.extra.get("save_projection") is False:
            extra = {**file.extra, "save_projection": True}
            file = replace(file, tensors={**self.frozen, **file.tensors}, extra=extra)
        super().load(file)
