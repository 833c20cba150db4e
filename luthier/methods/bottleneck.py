"""The bottleneck that Houlsby, Pfeiffer and parallel adapters share, and the settings that shape it.

    f(z) = s · (σ(z Wdᵀ + cd) Wuᵀ + cu)

Wd starts Kaiming-uniform with a = √5 (bound 1 / √D, as the down-projection of a LoRA) and all else at zero, so that the
adapted model begins as the base itself. The papers start all weights near zero instead (σ = 10⁻³, or 0.02).
Their code also trains every layer norm and the task's head; here the bottlenecks train alone.
Shapes: N tokens, D width of the model, H width of the bottleneck.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from luthier.methods.adapter import AdapterMethod, generator_of, trainable
from luthier.methods.contract import Group, Traits
from luthier.methods.sublayers import AddedMap, End
from luthier.ops.gated import activate

Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]


def bottleneck(
    z_ND: Tensor, down_HD: Tensor, down_H: Tensor, up_DH: Tensor, up_D: Tensor, activation: Activation
) -> Tensor:
    """σ(z Wdᵀ + cd) Wuᵀ + cu, in the dtype of z."""
    dtype = z_ND.dtype
    narrow_NH = F.linear(z_ND, down_HD.to(dtype), down_H.to(dtype))
    active_NH = F.relu(narrow_NH) if activation == "relu" else activate(narrow_NH, activation)
    return F.linear(active_NH, up_DH.to(dtype), up_D.to(dtype))


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


class BottleneckMethod(AdapterMethod):
    """A method that puts a bottleneck at the end of sublayers."""

    traits: ClassVar[Traits] = Traits(merges=False, deep_backward=True, over_4bit=True, identity_at_start=True)
    default_lr: ClassVar[float] = 3e-4

    width: int = Field(64, ge=1, description="Width of the bottleneck.")
    activation: Activation = Field("gelu", description="The function between its two projections.")
    scale: float = Field(1.0, gt=0, description="What the bottleneck's output is multiplied by.")
    layers: tuple[int, ...] | None = Field(
        None,
        description="Only in these transformer layers, counted from 0 (an encoder's first, then its decoder's); unset: in all.",
    )

    def fresh(self, end: End, seed: int, device: torch.device) -> Bottleneck:
        """A bottleneck for a sublayer's end, its random start decided by the seed and the place's name."""
        down_HD = fresh_down(self.width, end.width, generator_of(end.place, seed))
        up_DH = torch.zeros(end.width, self.width)
        return Bottleneck(trainable(down_HD, device), trainable(up_DH, device), self.activation, self.scale)

    def grouped(self, tensors: dict[str, nn.Parameter]) -> tuple[Group, ...]:
        """Matrices, and biases, which do not decay."""
        return matrices_and_biases(tensors)


def matrices_and_biases(tensors: dict[str, nn.Parameter]) -> tuple[Group, ...]:
    """Two groups: what is not called a bias, and what is; the latter does not decay."""
    biases = {name: tensor for name, tensor in tensors.items() if name.endswith(".bias")}
    matrices = {name: tensor for name, tensor in tensors.items() if name not in biases}
    return Group(matrices), Group(biases, decays=False)
