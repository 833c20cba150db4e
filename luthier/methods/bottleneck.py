"""The bottleneck that Houlsby, Pfeiffer and parallel adapters share, and the settings that shape it.

    f(z) = s · (σ(z Wdᵀ + cd) Wuᵀ + cu)

Wd starts Kaiming-uniform with a = √5 (bound 1 / √D, as the down-projection of a LoRA) and all else at zero, so that the
adapted model begins as the base itself. The papers start all weights near zero instead (σ = 10⁻³, or 0.02).
Their code also trains every layer norm and the task's head; here the bottlenecks train alone.
Shapes: N tokens, D width of the model, H width of the bottleneck.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from luthier.methods.adapter import AdapterMethod, generator_of, trainable
from luthier.methods.adapter_files import AdapterFile
from luthier.methods.adapterhub_files import CROSS, AdapterHubForm, activation_of, hub_activation, width_of
from luthier.methods.contract import Group, Traits
from luthier.methods.sublayers import AddedMap, End, Sublayer
from luthier.models.anatomy import chosen_layers
from luthier.models.language_model import LanguageModel
from luthier.ops.gated import activate

Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]


def bottleneck(
    z_ND: Tensor, down_HD: Tensor, down_H: Tensor, up_DH: Tensor, up_D: Tensor, activation: Activation
) -> Tensor:
    """σ(z Wdᵀ + cd) Wuᵀ + cu, in the dtype of z."""
    dtype = z_ND.dtype
    narrow_NH = F.linear(z_ND, down_HD.to(dtype), down_H.to(dtype))
    return F.linear(activated(narrow_NH, activation), up_DH.to(dtype), up_D.to(dtype))


def activated(x: Tensor, activation: Activation) -> Tensor:
    """The activation of a bottleneck by its name."""
    return F.relu(x) if activation == "relu" else activate(x, activation)


class Bottleneck(AddedMap):
    """f with one pair of projections."""

    def __init__(self, down_HD: nn.Parameter, up_DH: nn.Parameter, activation: Activation, scale: float) -> None:
        super().__init__()
        device = down_HD.device
        self.down_HD, self.down_H = down_HD, trainable(torch.zeros(len(down_HD)), device)
        self.up_DH, self.up_D = up_DH, trainable(torch.zeros(len(up_DH)), device)
        self.activation: Activation = activation
        self.scale = scale

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """Both projections and their biases."""
        return {
            "adapter_down.weight": self.down_HD,
            "adapter_down.bias": self.down_H,
            "adapter_up.weight": self.up_DH,
            "adapter_up.bias": self.up_D,
        }

    def forward(self, z_ND: Tensor) -> Tensor:
        """f(z)."""
        y_ND = bottleneck(z_ND, self.down_HD, self.down_H, self.up_DH, self.up_D, self.activation)
        return y_ND if self.scale == 1 else y_ND * self.scale


def fresh_down(num_outputs: int, num_inputs: int, generator: torch.Generator) -> Tensor:
    """A random down-projection (H, D): uniform within 1 / √D."""
    return (torch.rand(num_outputs, num_inputs, generator=generator) * 2 - 1) / math.sqrt(num_inputs)


SUBLAYER_FLAGS: Mapping[Sublayer, str] = {
    "attention": "mh_adapter",
    "cross-attention": CROSS,
    "feedforward": "output_adapter",
}
"""What the `adapters` library calls it that an adapter stands after a sublayer."""

FEEDFORWARD_ONLY: Mapping[str, object] = {flag: name == "feedforward" for name, flag in SUBLAYER_FLAGS.items()}


@dataclass(frozen=True)
class BottleneckForm(AdapterHubForm):
    """Plain bottlenecks in the files of the `adapters` library."""

    free: ClassVar[tuple[str, ...]] = ("scaling",)
    endings: ClassVar[Mapping[str, str]] = {
        "adapter_down.weight": "adapter_down.0.weight",
        "adapter_down.bias": "adapter_down.0.bias",
        "adapter_up.weight": "adapter_up.weight",
        "adapter_up.bias": "adapter_up.bias",
    }

    def settings_of(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
        """The shape of the bottleneck, and where it stands if there is a choice."""
        scale = config["scaling"]
        if not isinstance(scale, int | float):
            raise ValueError(f"The adapter has scaling = {scale!r}, a number that trains; a fixed one was expected.")
        width = width_of(tensors, ".adapter_down.0.bias")
        settings = {"width": width, "activation": activation_of(config), "scale": float(scale)}
        if SUBLAYER_FLAGS["attention"] in self.fixed:
            return settings
        return {**settings, "sublayers": tuple(name for name, flag in SUBLAYER_FLAGS.items() if config.get(flag))}

    def config_of(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The same in the library's words."""
        config: dict[str, Any] = {
            "non_linearity": hub_activation(settings["activation"]),
            "scaling": float(settings["scale"]),
        }
        if "sublayers" in settings:
            config |= {flag: name in settings["sublayers"] for name, flag in SUBLAYER_FLAGS.items()}
        return config


class SublayerMethod(AdapterMethod):
    """A method that puts adapters at the end of sublayers, and writes the files of the `adapters` library."""

    traits: ClassVar[Traits] = Traits(merges=False, deep_backward=True, over_4bit=True, identity_at_start=True)
    form: ClassVar[AdapterHubForm]

    layers: tuple[int, ...] | None = Field(
        None,
        description="Only in these transformer layers, counted from 0 (an encoder's first, then its decoder's); unset: in all.",
    )

    def understood(self, file: AdapterFile, model: LanguageModel) -> AdapterFile:
        """The file under Luthier's names, with its layers one by one."""
        file = self.form.fitted(file, model.anatomy)
        return replace(file, settings={**file.settings, "layers": layer_indices(model, file.settings["layers"])})

    def stated(self, model: LanguageModel) -> dict[str, Any]:
        """As for any adapter, with the layers one by one."""
        stated = super().stated(model)
        return {**stated, "layers": layer_indices(model, self.layers)} if "layers" in stated else stated

    def grouped(self, tensors: dict[str, nn.Parameter]) -> tuple[Group, ...]:
        """Matrices, and biases, which do not decay."""
        return matrices_and_biases(tensors)


def layer_indices(model: LanguageModel, layers: Sequence[int] | None) -> tuple[int, ...]:
    """The indices of the chosen layers in order; None: all."""
    return tuple(layer.index for layer in chosen_layers(model.anatomy, None if layers is None else tuple(layers)))


class BottleneckMethod(SublayerMethod):
    """A method that puts a bottleneck at the end of sublayers."""

    default_lr: ClassVar[float] = 3e-4

    width: int = Field(64, ge=1, description="Width of the bottleneck.")
    activation: Activation = Field("gelu", description="The function between its two projections.")
    scale: float = Field(1.0, gt=0, description="What the bottleneck's output is multiplied by.")

    def fresh(self, end: End, seed: int, device: torch.device) -> Bottleneck:
        """A bottleneck for a sublayer's end, its random start decided by the seed and the place's name."""
        down_HD = fresh_down(self.width, end.width, generator_of(end.place, seed))
        up_DH = torch.zeros(end.width, self.width)
        return Bottleneck(trainable(down_HD, device), trainable(up_DH, device), self.activation, self.scale)


def matrices_and_biases(tensors: dict[str, nn.Parameter]) -> tuple[Group, ...]:
    """Two groups: what is not called a bias, and what is; the latter does not decay."""
    biases = {name: tensor for name, tensor in tensors.items() if name.endswith(".bias")}
    matrices = {name: tensor for name, tensor in tensors.items() if name not in biases}
    return Group(matrices), Group(biases, decays=False)
