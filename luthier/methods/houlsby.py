"""Houlsby adapters: a bottleneck after the attention and one after the feed-forward of every layer.

Houlsby et al. 2019, https://arxiv.org/abs/1902.00751:  u' = u + f(u),  f(z) = s · (σ(z Wdᵀ + cd) Wuᵀ + cu),
with u what the sublayer gives before the residual sum: h' = r + u', or LN(r + u') where norms follow the sums.

Files: those of the `adapters` library for the architectures in common (Llama, Mistral, Qwen2, Qwen3, GPT-2, BERT, RoBERTa, T5,
BART; load_adapter(folder, use_safetensors=True) reads them there), Luthier's own for others.

Merges: no. Deep backward: yes, to the lowest adapter. Over 4 bits: yes. Identity at the start: exact (Wu = 0).
Trainable numbers: K (2 D H + D + H), K = the number of sublayers.
Shapes: D width of the model, H width of the bottleneck.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.methods.bottleneck import BottleneckForm, BottleneckMethod
from luthier.methods.contract import Kin
from luthier.methods.sublayers import SerialBranch, Sublayer, sublayer_ends, with_branches
from luthier.models.language_model import LanguageModel


class Houlsby(BottleneckMethod):
    """Bottlenecks in series with the sublayers."""

    family: ClassVar[Kin] = "adapter"
    paper: ClassVar[str] = "https://arxiv.org/abs/1902.00751"
    count: ClassVar[str] = "K (2 D H + D + H), K = adapted sublayers, D = width, H = bottleneck"
    form: ClassVar[BottleneckForm] = BottleneckForm("houlsby")

    kind: Literal["houlsby"] = "houlsby"
    sublayers: tuple[Sublayer, ...] = Field(
        ("attention", "feedforward"),
        min_length=1,
        description="After which sublayers of a layer a bottleneck stands; cross-attention is where a decoder reads an encoder.",
    )

    def place(self, model: LanguageModel, name: str, seed: int, fast: bool) -> AdapterAttachment:
        """A fresh bottleneck after every chosen sublayer."""
        ends = sublayer_ends(model, self.layers, self.sublayers)
        branches = {end.place: SerialBranch(self.fresh(end, seed, model.device), end.factor) for end in ends}
        return AdapterAttachment(self, model, name, with_branches(model, name, branches))
