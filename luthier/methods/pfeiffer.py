"""Pfeiffer adapters: one bottleneck a layer, after the feed-forward, which reads the residual sum.

Pfeiffer et al. 2020, https://arxiv.org/abs/2005.00247:  h' = r + u + f(r + u),  f(z) = s · (σ(z Wdᵀ + cd) Wuᵀ + cu),
with r the residual that enters the feed-forward and u what that gives. Where norms follow the sums, the model's own
norm is used twice: h' = LN(r + u + f(LN(r + u))). Some call by this name an adapter after the attention; this is not it.

Files: those of the `adapters` library for the architectures in common (Llama, Mistral, Qwen2, Qwen3, GPT-2, BERT, RoBERTa, T5,
BART; load_adapter(folder, use_safetensors=True) reads them there), Luthier's own for others.

Merges: no. Deep backward: yes, to the lowest adapter. Over 4 bits: yes. Identity at the start: exact (Wu = 0).
Trainable numbers: L (2 D H + D + H), L = the number of layers.
Shapes: N tokens, D width of the model, H width of the bottleneck.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.methods.bank import AdaptedLayer, Branch
from luthier.methods.bottleneck import FEEDFORWARD_ONLY, Activation, BottleneckForm, BottleneckMethod
from luthier.methods.contract import Kin
from luthier.methods.sublayers import (
    AddedMap,
    AddingBranch,
    norm_of_sum,
    noted_residual,
    residual_noter,
    sublayer_ends,
    with_branches,
)
from luthier.models.call import Run
from luthier.models.language_model import LanguageModel


class Pfeiffer(BottleneckMethod):
    """Bottlenecks on the residual sum after the feed-forward."""

    family: ClassVar[Kin] = "adapter"
    paper: ClassVar[str] = "https://arxiv.org/abs/2005.00247"
    count: ClassVar[str] = "L (2 D H + D + H), L = adapted layers, D = width, H = bottleneck"
    form: ClassVar[BottleneckForm] = BottleneckForm("pfeiffer", {**FEEDFORWARD_ONLY, "original_ln_before": True})

    kind: Literal["pfeiffer"] = "pfeiffer"
    activation: Activation = Field("relu", description="The function between its two projections.")

    def place(self, model: LanguageModel, name: str, seed: int, fast: bool) -> AdapterAttachment:
        """A fresh bottleneck after every chosen layer's feed-forward."""
        branches: dict[str, Branch] = {}
        for end in sublayer_ends(model, self.layers, ("feedforward",)):
            added = self.fresh(end, seed, model.device)
            branches[end.place] = PfeifferBranch(added, end.factor, norm_of_sum(model, end))
            start, noter = residual_noter(model, end)
            branches[start] = noter
        return AdapterAttachment(self, model, name, with_branches(model, name, branches))


class PfeifferBranch(AddingBranch):
    """z = r + u, or LN(r + u) where norms follow the sums."""

    reads_residual: ClassVar[bool] = True

    def __init__(self, added: AddedMap, factor: float, norm: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__(added, factor)
        self.norm = norm

    def reads(self, u_ND: Tensor, layer: AdaptedLayer, run: Run) -> Tensor:
        """The sum as the next layer would see it without the adapter."""
        sum_ND = noted_residual(layer, run) + u_ND
        return sum_ND if self.norm is None else self.norm(sum_ND)
