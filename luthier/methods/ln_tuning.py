"""LN-tuning: train the gains (and biases) of the norms, and nothing else.

Qi et al. 2022, https://arxiv.org/abs/2211.08682; for language models Zhao et al. 2023, https://arxiv.org/abs/2312.11420:

    LayerNorm:  y = g ⊙ (x − mean(x)) / √(var(x) + ε) + b        RMSNorm:  y = g ⊙ x / √(mean(x²) + ε)

with g and b trained from their pretrained values. Where a family stores its gain as w and multiplies by 1 + w (Gemma), w
is what trains. An RMSNorm has no bias, and giving it one would be another method. The norms of queries and keys train only
where `targets` name them. Gains lie near 1, where half-precision numbers are 1/256 apart, so that small steps in them
would vanish; like all trained tensors these are fp32.

Merges: yes, gain and bias are written into the norm. Deep backward: yes, to the lowest trained norm. Over 4 bits: yes.
Identity at the start: exact.
Trainable numbers: Σ D over the norms, 2 D for those with a bias; (2 L + 1) D for Llama.
Shapes: N tokens, D width.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from luthier.errors import RecipeError
from luthier.methods.adapter import BranchMethod, trainable
from luthier.methods.bank import AdaptedLayer, AdaptedNorm, Branch, NormBranch, frozen_module, own_parameters
from luthier.methods.contract import Group, Kin, Traits
from luthier.methods.peft_files import PeftForm
from luthier.models.anatomy import Anatomy, find_among
from luthier.models.call import Run
from luthier.models.language_model import LanguageModel

LN_FORM = PeftForm(
    title="LN-tuning",
    peft_type="LN_TUNING",
    fields={},
    endings=("ln_tuning_layers.weight", "ln_tuning_layers.bias"),
    transposes=False,
)


class LNTuning(BranchMethod):
    """The gains and biases of the norms."""

    family: ClassVar[Kin] = "selective"
    paper: ClassVar[str] = "https://arxiv.org/abs/2211.08682"
    count: ClassVar[str] = "Σ D over the trained norms, 2 D for those with a bias"
    traits: ClassVar[Traits] = Traits(merges=True, deep_backward=True, over_4bit=True, identity_at_start=True)
    default_lr: ClassVar[float] = 1e-3
    form: ClassVar[PeftForm] = LN_FORM

    kind: Literal["ln-tuning"] = "ln-tuning"
    targets: tuple[str, ...] | None = Field(
        None,
        description="Norms to train, by the last parts of their names; unset: all but those of queries and keys.",
    )

    @field_validator("targets", mode="before")
    @classmethod
    def _one_name_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    def places(self, model: LanguageModel) -> tuple[str, ...]:
        """The trained norms. Raises RecipeError if none of those chosen has a gain."""
        anatomy = model.anatomy
        norms = anatomy.hidden_norms if self.targets is None else anatomy.norms
        chosen = find_among(anatomy, norms, self.targets, self.layers, "null")
        with_gain = tuple(name for name in chosen if "weight" in own_parameters(frozen_module(model, name)))
        if not with_gain:
            raise RecipeError(
                "None of the model's norms here has a gain that could train.",
                "Choose another method, such as lora.",
                field="method.kind",
            )
        return with_gain

    def known(self, anatomy: Anatomy) -> set[str]:
        """Every norm."""
        return set(anatomy.norms)

    def branch(self, layer: AdaptedLayer, generator: torch.Generator, fast: bool) -> Branch:
        """A copy of the norm's own gain and bias."""
        assert isinstance(layer, AdaptedNorm)
        gain_D = trainable(layer.gain.detach().clone(), layer.gain.device)
        bias_D = None if layer.bias is None else trainable(layer.bias.detach().clone(), layer.gain.device)
        return GainBranch(gain_D, bias_D)

    def grouped(self, tensors: dict[str, nn.Parameter]) -> tuple[Group, ...]:
        """One group without weight decay, which would pull gains to 0."""
        return (Group(tensors, decays=False),)


class GainBranch(NormBranch):
    """A gain (D,) as the family stores it, and a bias (D,) where the norm has one, in the place of the frozen ones."""

    def __init__(self, gain_D: nn.Parameter, bias_D: nn.Parameter | None) -> None:
        super().__init__()
        self.gain_D, self.bias_D = gain_D, bias_D

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """Gain and bias under peft's names."""
        bias = {} if self.bias_D is None else {"ln_tuning_layers.bias": self.bias_D}
        return {"ln_tuning_layers.weight": self.gain_D, **bias}

    def forward(self, x_ND: Tensor, layer: AdaptedNorm, run: Run) -> Tensor:
        """The norm with this gain and bias."""
        return layer.normalized(x_ND, self.gain_D, self.bias_D)

    @torch.no_grad()
    def merge_into(self, layer: AdaptedLayer) -> None:
        """Write gain and bias into the frozen norm."""
        assert isinstance(layer, AdaptedNorm)
        layer.gain.copy_(self.gain_D)
        if layer.bias is not None and self.bias_D is not None:
            layer.bias.copy_(self.bias_D)
