"""Sparse changes of frozen linear layers: W + M ⊙ Δ, where M is found early in training and then holds.

Δ is a whole matrix, because what trains keeps its shape for a run. Once M is chosen, the layer reads Δ at M's places only:
no gradient arises outside, and whatever an optimizer's momentum leaves there is without effect, and is set to zero.
Shapes: O outputs, I inputs, K places that are kept.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.methods.bank import AdaptedLinear


class Delta(nn.Module):
    """Δ (O, I), fp32, zero at the start; `kept_K` are the places of M in the flattened matrix, None before it is chosen."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.delta_OI = nn.Parameter(torch.zeros(outputs, inputs))
        self.kept_K: Tensor | None = None

    def added_to(self, weight_OI: Tensor) -> Tensor:
        """W + M ⊙ Δ."""
        if self.kept_K is None:
            return weight_OI + self.delta_OI
        values_K = self.delta_OI.flatten().index_select(0, self.kept_K)
        return weight_OI.flatten().index_add(0, self.kept_K, values_K).view(weight_OI.shape)

    @torch.no_grad()
    def begin_anew(self, kept_K: Tensor) -> None:
        """From now on these places alone, from zero."""
        self.kept_K = kept_K.to(self.delta_OI.device)
        self.delta_OI.zero_()

    @torch.no_grad()
    def clear_outside(self) -> None:
        """Set what lies outside the kept places to zero."""
        assert self.kept_K is not None
        flat = self.delta_OI.view(-1)
        values_K = flat[self.kept_K]
        flat.zero_()
        flat[self.kept_K] = values_K

    @torch.no_grad()
    def packed(self) -> tuple[Tensor, Tensor]:
        """Places (int32) and values of what is kept; before M is chosen, of what is not zero."""
        flat = self.delta_OI.flatten()
        kept_K = torch.nonzero(flat)[:, 0] if self.kept_K is None else self.kept_K
        return kept_K.to(torch.int32), flat[kept_K]

    @torch.no_grad()
    def unpack(self, places_K: Tensor, values_K: Tensor) -> None:
        """Take over what `packed` gave."""
        self.begin_anew(places_K.long())
        assert self.kept_K is not None
        self.delta_OI.view(-1)[self.kept_K] = values_K.to(self.delta_OI.device)


class ChangedLinear(nn.Module):
    """A frozen linear layer with the weight W + M ⊙ Δ: one product for fp32 weights, else one for W and one for M ⊙ Δ."""

    def __init__(self, layer: AdaptedLinear, delta: Delta) -> None:
        super().__init__()
        self.layer = layer
        self.delta = delta

    def forward(self, x: Tensor) -> Tensor:
        weight_OI = self.layer.weight
        if weight_OI.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type):
            return F.linear(x, self.delta.added_to(weight_OI), self.layer.bias)
        delta_OI = self.delta.added_to(
            torch.zeros_like(self.delta.delta_OI)
        )  # apart: half precision would round it off
        return self.layer.product(x) + F.linear(x, delta_OI.to(x.dtype))


def strongest_places(score_OI: Tensor, density: float) -> Tensor:
    """The places (K,) of a matrix's highest scores, in their order: a share `density` of all, at least one."""
    count = max(1, round(density * score_OI.numel()))
    return score_OI.flatten().topk(count).indices.sort().values
