"""BitFit: train the biases alone.

Ben Zaken et al. 2021, https://arxiv.org/abs/2106.10199:  y = x Wᵀ + c  and  y = LayerNorm(x; g, b), where only c and b train.

A bias is one by its role, that of a linear layer or of a LayerNorm inside the transformer, never by its name. The head's,
which few models have, trains only where `targets` names it (our choice: it is as long as the vocabulary). A head for
classes is trained whole where it is new; a pooler before it that is not new (BERT's) trains its bias.
Many models lack biases. What then happens is chosen by `missing`: BitFit is refused, or every linear layer without a bias
is given one that starts at zero ("BitFit with added biases"), or the biases that exist train (Qwen2's q, k and v, say).

Merges: yes, biases are written into their layers; added ones only where the architecture has a switch for them. Deep
backward: yes, to the lowest trained bias. Over 4 bits: yes. Identity at the start: exact.
A bias of the keys is without effect where positions are not rotary: its gradient is zero up to rounding.
Trainable numbers: Σ O over the linear layers + Σ D over the LayerNorms; 11 D a layer for BERT and GPT-2.
Shapes: N tokens, I inputs, O outputs, D width.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from luthier.errors import RecipeError
from luthier.methods.adapter import BranchMethod, trainable
from luthier.methods.adapter_files import OwnForm
from luthier.methods.bank import (
    AdaptedLayer,
    AdaptedLinear,
    AdaptedNorm,
    Branch,
    LinearBranch,
    NormBranch,
    frozen_module,
    own_parameters,
)
from luthier.methods.contract import Group, Kin, Traits
from luthier.models.anatomy import Anatomy, find_among, is_linear, weight_of
from luthier.models.call import Run
from luthier.models.language_model import LanguageModel

# What configs call the switches that give linear layers a bias.
_SWITCHES = ("attention_bias", "mlp_bias", "classifier_bias", "bias", "enable_bias")


class BitFit(BranchMethod):
    """The biases of linear layers and norms."""

    family: ClassVar[Kin] = "selective"
    paper: ClassVar[str] = "https://arxiv.org/abs/2106.10199"
    count: ClassVar[str] = "Σ O over the linear layers + Σ D over the norms, of those with a bias"
    traits: ClassVar[Traits] = Traits(merges=True, deep_backward=True, over_4bit=True, identity_at_start=True)
    default_lr: ClassVar[float] = 1e-3
    form: ClassVar[OwnForm] = OwnForm("bitfit")

    kind: Literal["bitfit"] = "bitfit"
    targets: tuple[str, ...] | None = Field(
        None,
        description="Linear layers and norms whose biases train, by the last parts of their names; unset: all but the head.",
    )
    missing: Literal["refuse", "add-zero", "partial"] = Field(
        "refuse",
        description="Where linear layers lack a bias: refuse to train, add biases that start at zero, or train those that exist.",
    )

    @field_validator("targets", mode="before")
    @classmethod
    def _one_name_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    def places(self, model: LanguageModel) -> tuple[str, ...]:
        """The layers whose biases train. Raises RecipeError for missing biases as `missing` says, and if there are none."""
        anatomy = model.anatomy
        head = anatomy.head_linears[: -1 if model.is_head_read else 0] if self.targets is None else anatomy.head_linears
        modules = (*anatomy.linears, *anatomy.norms, *(name for name in head if name not in model.new_head))
        chosen = find_among(anatomy, modules, self.targets, self.layers, "null")
        biased = {name for name in chosen if "bias" in own_parameters(frozen_module(model, name))}
        linears = {name for name in chosen if is_linear(frozen_module(model, name))}
        if self.missing == "refuse" and linears - biased:
            raise RecipeError(
                f"{len(linears - biased)} of the {len(linears)} linear layers chosen have no bias.",
                "Set method.missing to add-zero or, where some have one, to partial; "
                "or tune the norms instead with method.kind ln-tuning.",
                field="method.missing",
            )
        trained = biased | linears if self.missing == "add-zero" else biased
        if not trained:
            raise RecipeError(
                "None of the layers chosen has a bias.",
                "Set method.missing to add-zero, or tune the norms instead with method.kind ln-tuning.",
                field="method.missing",
            )
        return tuple(name for name in chosen if name in trained)

    def known(self, anatomy: Anatomy) -> set[str]:
        """Every linear layer, norm, and the head."""
        return {*anatomy.linears, *anatomy.norms, *anatomy.head_linears}

    def branch(self, layer: AdaptedLayer, generator: torch.Generator, fast: bool) -> Branch:
        """A copy of the layer's own bias, or zeros."""
        assert isinstance(layer, AdaptedLinear | AdaptedNorm)
        if isinstance(layer, AdaptedNorm):
            assert layer.bias is not None
            return NormBias(trainable(layer.bias.detach().clone(), layer.gain.device))
        bias_O = torch.zeros(layer.shape[0], device=layer.device) if layer.bias is None else layer.bias.detach().clone()
        return LinearBias(trainable(bias_O, layer.device))

    def grouped(self, tensors: dict[str, nn.Parameter]) -> tuple[Group, ...]:
        """One group without weight decay."""
        return (Group(tensors, decays=False),)

    def prepare_merge(self, model: LanguageModel, layers: tuple[str, ...]) -> None:
        """Turn on the config's switches for biases that were added. Raises RecipeError if there are none for some."""
        added = {f"{name}.bias" for name in layers if "bias" not in own_parameters(frozen_module(model, name))}
        if not added:
            return
        opened = {switch: slots for switch in _SWITCHES if (slots := _slots_of(model, switch)) & added}
        homeless = added - {slot for slots in opened.values() for slot in slots}
        if homeless:
            endings = sorted({name.removesuffix(".bias").rpartition(".")[2] for name in homeless})
            raise RecipeError(
                f"A {model.hf.config.model_type} model has no place for a bias at {', '.join(endings)}, so the biases "
                "that were added there cannot be merged.",
                "Keep the adapter beside the base model.",
                field="method.missing",
            )
        for switch, slots in opened.items():
            model.hf.config.update({switch: True})
            for slot in slots - added:
                _add_zero_bias(frozen_module(model, slot.removesuffix(".bias")))


def _slots_of(model: LanguageModel, switch: str) -> set[str]:
    """The biases of linear layers that the model's architecture would have beside its own, were a switch on."""
    config = copy.deepcopy(model.hf.config)
    if switch not in config.to_dict():
        return set()
    with torch.device("meta"):
        before = set(type(model.hf)(config).state_dict())
        config.update({switch: True})
        after = set(type(model.hf)(config).state_dict())
    slots = {f"{name}.bias" for name in (*model.anatomy.linears, *model.anatomy.head_linears)}
    return after - before if after - before <= slots else set()


def _add_zero_bias(linear: nn.Module) -> None:
    weight_OI = weight_of(linear)
    zeros_O = weight_OI.new_zeros(len(weight_OI))
    linear.register_parameter("bias", nn.Parameter(zeros_O, requires_grad=False))


class LinearBias(LinearBranch):
    """A bias (O,) in the place of the frozen one."""

    def __init__(self, bias_O: nn.Parameter) -> None:
        super().__init__()
        self.bias_O = bias_O

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """The bias."""
        return {"bias": self.bias_O}

    def forward(self, x_NI: Tensor, layer: AdaptedLinear, run: Run) -> Tensor:
        """x Wᵀ + c."""
        return layer.product_with(x_NI, self.bias_O)

    def merged(self, weight_OI: Tensor, bias_O: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W and this bias."""
        return weight_OI, self.bias_O


class NormBias(NormBranch):
    """A bias (D,) in the place of the frozen one."""

    def __init__(self, bias_D: nn.Parameter) -> None:
        super().__init__()
        self.bias_D = bias_D

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """The bias."""
        return {"bias": self.bias_D}

    def forward(self, x_ND: Tensor, layer: AdaptedNorm, run: Run) -> Tensor:
        """The norm with the frozen gain and this bias."""
        return layer.normalized(x_ND, layer.gain, self.bias_D)

    @torch.no_grad()
    def merge_into(self, layer: AdaptedLayer) -> None:
        """Write the bias into the frozen norm."""
        assert isinstance(layer, AdaptedNorm)
        assert layer.bias is not None
        layer.bias.copy_(self.bias_D)
