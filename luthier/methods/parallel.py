"""Parallel adapters: one bottleneck a layer, beside the feed-forward.

He et al. 2021, https://arxiv.org/abs/2110.04366:  h' = r + u + f(r),  f(z) = s · (σ(z Wdᵀ + cd) Wuᵀ + cu),  s = 4,
with r the residual that enters the feed-forward, before its norm, and u what that gives; LN(r + u + f(r)) where norms
follow the sums. The `adapters` library reads r likewise; the paper's own code may read the normed input instead (that is
from memory).

Files: those of the `adapters` library for the architectures in common (Llama, Mistral, Qwen2, Qwen3, GPT-2, BERT, RoBERTa, T5,
BART; load_adapter(folder, use_safetensors=True) reads them there), Luthier's own for others.

Merges: no. Deep backward: yes, to the lowest adapter. Over 4 bits: yes. Identity at the start: exact (Wu = 0).
Trainable numbers: L (2 D H + D + H), L = the number of layers.
Shapes: N tokens, D width of the model, H width of the bottleneck.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.methods.bank import AdaptedLayer, Branch
from luthier.methods.bottleneck import FEEDFORWARD_ONLY, Activation, BottleneckForm, BottleneckMethod
from luthier.methods.contract import Kin
from luthier.methods.sublayers import AddingBranch, noted_residual, residual_noter, sublayer_ends, with_branches
from luthier.models.call import Run
from luthier.models.language_model import LanguageModel


class Parallel(BottleneckMethod):
    """Bottlenecks beside the feed-forward."""

    family: ClassVar[Kin] = "adapter"
    paper: ClassVar[str] = "https://arxiv.org/abs/2110.04366"
    count: ClassVar[str] = "L (2 D H + D + H), L = adapted layers, D = width, H = bottleneck"
    form: ClassVar[BottleneckForm] = BottleneckForm("parallel", {**FEEDFORWARD_ONLY, "is_parallel": True})

    kind: Literal["parallel"] = "parallel"
    activation: Activation = Field("relu", description="The function between its two projections.")
    scale: float = Field(4.0, gt=0, description="What the bottleneck's output is multiplied by.")

    def place(self, model: LanguageModel, name: str, seed: int, fast: bool) -> AdapterAttachment:
        """A fresh bottleneck beside every chosen layer's feed-forward."""
        branches: dict[str, Branch] = {}
        for end in sublayer_ends(model, self.layers, ("feedforward",)):
            branches[end.place] = ParallelBranch(self.fresh(end, seed, model.device), end.factor)
            start, noter = residual_noter(model, end)
            branches[start] = noter
        return AdapterAttachment(self, model, name, with_branches(model, name, branches))


class ParallelBranch(AddingBranch):
    """z = r."""

    reads_residual: ClassVar[bool] = True

    def reads(self, u_ND: Tensor, layer: AdaptedLayer, run: Run) -> Tensor:
        """The residual that entered the feed-forward."""
        return noted_residual(layer, run)
