"""AttentionFusion-style: a small query decides, token by token, how much of each layer's output goes to the head.

After Cao, Prakash & Hamza 2022, Findings of NAACL, pp. 857-866. The paper's: the fusion of a frozen model's layers by
attention, nothing inserted inside the model, no backward pass through it. Ours, since only the abstract could be read:

    e_j = q · RMS(h_j) / √D + β_j,   α = softmax_j(e),   z = h_L + γ (Σ_j α_j h_j − h_L),   j = 0 … L

with q small and random, β = 0 and γ = 0 at the start, so that training begins at the base model; the base's final norm and
head then read z. Layer 0 is what enters the first layer; all h are taken before the final norm. In an encoder-decoder the
decoder's layers are fused: what took the place of the encoder's states would need a backward pass through the decoder.

Merges: no. Deep backward: no. Over 4 bits: yes. Identity at the start: exact.
Trainable numbers: D + (L + 1) + 1.
Shapes: J = L + 1 states of a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from luthier.methods.adapter_files import OwnForm
from luthier.methods.contract import Group, Kin, Traits
from luthier.methods.side import SideMethod
from luthier.models.language_model import LanguageModel
from luthier.models.sides import Side
from luthier.models.taps import Taps

_EPS = 1e-6


class AttentionFusion(SideMethod):
    """Fuse the layers' outputs by attention."""

    family: ClassVar[Kin] = "additive"
    paper: ClassVar[str] = "Cao, Prakash & Hamza 2022, Findings of NAACL, pp. 857-866"
    count: ClassVar[str] = "D + (L + 1) + 1"
    traits: ClassVar[Traits] = Traits(merges=False, deep_backward=False, over_4bit=True, identity_at_start=True)
    default_lr: ClassVar[float] = 3e-3
    form: ClassVar[OwnForm] = OwnForm("attention-fusion")
    free_fields: ClassVar[frozenset[str]] = frozenset()

    kind: Literal["attention-fusion"] = "attention-fusion"
    query_std: float = Field(
        0.02, gt=0, allow_inf_nan=False, description="Standard deviation of the query's random start."
    )

    def side(self, model: LanguageModel, generator: torch.Generator) -> FusionSide:
        """The query, the layers' biases and the gate."""
        width = model.hf.get_submodule(model.anatomy.embedding).get_parameter("weight").shape[1]
        query_D = torch.randn(width, generator=generator) * self.query_std
        return FusionSide(query_D, len(model.anatomy.answering) + 1, model.final_norm)

    def grouped(self, tensors: dict[str, nn.Parameter]) -> tuple[Group, ...]:
        """One group that does not decay: vectors and a gate."""
        return (Group(tensors, decays=False),)


class FusionSide(Side):
    """z of every token, through the base's final norm."""

    def __init__(self, query_D: Tensor, num_states: int, final_norm: Any) -> None:
        super().__init__()
        self.query = nn.Parameter(query_D.float())
        self.layer_bias = nn.Parameter(torch.zeros(num_states))
        self.gate = nn.Parameter(torch.zeros(()))
        self._final_norm = final_norm

    @property
    def taps(self) -> Taps:
        """All of them."""
        return Taps(tuple(range(len(self.layer_bias))))

    def forward(self, tapped: Mapping[int, Tensor], inputs: Mapping[str, Any]) -> Tensor:
        """The fused states (B, T, D)."""
        last_BTD = tapped[len(tapped) - 1]
        states_JBTD = torch.stack([tapped[number].float() for number in range(len(tapped))])
        share_JBT = self.shares(states_JBTD)
        fused_BTD = (share_JBT.unsqueeze(-1) * states_JBTD).sum(0)
        z_BTD = last_BTD.float() + self.gate * (fused_BTD - last_BTD.float())
        normed: Tensor = self._final_norm(z_BTD.to(last_BTD.dtype))
        return normed

    def shares(self, states_JBTD: Tensor) -> Tensor:
        """α: how much each token takes of each layer's state, shape (J, B, T); sums to 1 over J."""
        rms_JBT = states_JBTD.square().mean(-1).add(_EPS).sqrt()
        score_JBT = states_JBTD @ self.query / (rms_JBT * states_JBTD.shape[-1] ** 0.5)
        share_JBT: Tensor = (score_JBT + self.layer_bias.view(-1, 1, 1)).softmax(0)
        return share_JBT
