"""Gates: numbers between 0 and 1, computed token by token, that weigh what an adapter does.

    g = σ(x w + c),   w = 0 and c = 0 at the start, so g = ½

Shapes: N tokens, I inputs, O outputs, D width of the model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.methods.adapter import trainable
from luthier.methods.bank import AdaptedLayer, AdaptedLinear, LinearBranch
from luthier.methods.lora_layers import LoRABranch
from luthier.methods.sublayers import AddedMap, AddingBranch
from luthier.models.call import Run, current_call


class Gate(nn.Module):
    """w (D,) and c, fp32 whatever the base is."""

    def __init__(self, width: int, device: torch.device) -> None:
        super().__init__()
        self.weight_D = trainable(torch.zeros(width), device)
        self.bias_1 = trainable(torch.zeros(1), device)

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """What trains, by the ending of its name."""
        return {"weight": self.weight_D, "bias": self.bias_1}

    def forward(self, x_ND: Tensor) -> Tensor:
        """g (N, 1)."""
        return torch.sigmoid(F.linear(x_ND, self.weight_D[None].to(x_ND.dtype), self.bias_1.to(x_ND.dtype)))


class GatedUpdate(LinearBranch):
    """x Wᵀ + c + g · s drop(x) Aᵀ Bᵀ, with g of the layer's own input; files hold the LoRA, the gate is its owner's."""

    def __init__(self, lora: LoRABranch, gate: Gate) -> None:
        super().__init__()
        self.lora, self.gate = lora, gate

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """A and B."""
        return self.lora.tensors

    @property
    def draws(self) -> bool:
        """Whether there is dropout."""
        return self.lora.draws

    def forward(self, x_NI: Tensor, layer: AdaptedLinear, run: Run) -> Tensor:
        """The layer's output with the gated update."""
        y_NO = layer.product(x_NI)
        weighed_NO: Tensor = self.gate(x_NI) * self.lora.change(x_NI, layer, run)
        return y_NO + weighed_NO.to(y_NO.dtype)


class GatedAdding(AddingBranch):
    """u + g f(z), with g of the residual r that enters the feed-forward; files hold f, the gate is its owner's."""

    def __init__(self, adding: AddingBranch, gate: Gate) -> None:
        super().__init__(GatedMap(adding.added, gate), adding.factor)
        self.adding = adding

    def reads(self, u_ND: Tensor, layer: AdaptedLayer, run: Run) -> Tensor:
        """r and z side by side (N, 2 D)."""
        r_ND = current_call().notes[layer.name, run.start]
        return torch.cat([r_ND, self.adding.reads(u_ND, layer, run)], dim=-1)


class GatedMap(AddedMap):
    """g(r) f(z)."""

    def __init__(self, added: AddedMap, gate: Gate) -> None:
        super().__init__()
        self.added, self.gate = added, gate

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """Those of f."""
        return self.added.tensors

    def forward(self, both_N2D: Tensor) -> Tensor:
        """g(r) f(z) of r and z side by side."""
        r_ND, z_ND = both_N2D.chunk(2, dim=-1)
        weighed_ND: Tensor = self.gate(r_ND) * self.added(z_ND)
        return weighed_ND
