"""Sparse changes of frozen linear layers: W + M ⊙ Δ, where M is found early in training and then holds.

Until then Δ is a whole matrix. Once M is chosen, another tensor takes its place that holds the numbers at M's places alone:
nothing outside has a value, a gradient or an optimizer's state.
Shapes: O outputs, I inputs, K places that are kept.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.methods.bank import AdaptedLinear


class Delta(nn.Module):
    """Δ, fp32, zero at the start.

    kept_K: the places of M in the flattened matrix, None before it is chosen. numbers: what trains, shape (O, I) before
    that, (K,) from then on.
    """

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.shape = (outputs, inputs)
        self.kept_K: Tensor | None = None
        self.numbers = nn.Parameter(torch.zeros(self.shape))

    def added_to(self, weight_OI: Tensor) -> Tensor:
        """W + M ⊙ Δ."""
        if self.kept_K is None:
            return weight_OI + self.numbers
        return weight_OI.flatten().index_add(0, self.kept_K, self.numbers).view(self.shape)

    def alone(self) -> Tensor:
        """M ⊙ Δ (O, I)."""
        return self.added_to(torch.zeros(self.shape, device=self.numbers.device))

    def begin_anew(self, kept_K: Tensor | None) -> None:
        """From now on these places alone, or the whole matrix for None, from zero: `numbers` is another tensor then."""
        self.kept_K = None if kept_K is None else kept_K.to(self.numbers.device)
        shape = self.shape if self.kept_K is None else self.kept_K.shape
        self.numbers = nn.Parameter(torch.zeros(shape, device=self.numbers.device))

    @torch.no_grad()
    def packed(self) -> tuple[Tensor, Tensor]:
        """Places (int32) and values of what is kept; before M is chosen, of what is not zero."""
        flat = self.numbers.detach().flatten()
        if self.kept_K is not None:
            return self.kept_K.to(torch.int32), flat
        kept_K = torch.nonzero(flat)[:, 0]
        return kept_K.to(torch.int32), flat[kept_K]

    @torch.no_grad()
    def unpack(self, places_K: Tensor, values_K: Tensor) -> None:
        """Take over what `packed` gave."""
        self.begin_anew(places_K.long())
        self.numbers.copy_(values_K)


class ChangedLinear(nn.Module):
    """A frozen linear layer with the weight W + M ⊙ Δ: one product for fp32 weights, else one for W and one for M ⊙ Δ."""

    def __init__(self, layer: AdaptedLinear, delta: Delta) -> None:
        super().__init__()
        self.layer = layer
        self.delta = delta

    def forward(self, x: Tensor) -> Tensor:
        weight_OI = self.layer.frozen
        is_autocast = torch.is_autocast_enabled(x.device.type)
        if isinstance(weight_OI, Tensor) and weight_OI.dtype == torch.float32 and not is_autocast:
            return F.linear(x, self.delta.added_to(weight_OI), self.layer.bias)
        # apart: half precision would round Δ off
        return self.layer.product(x) + F.linear(x, self.delta.alone().to(x.dtype))


def strongest_places(score_OI: Tensor, density: float) -> Tensor:
    """The places (K,) of a matrix's highest scores, in their order: a share `density` of all, at least one."""
    count = max(1, round(density * score_OI.numel()))
    return score_OI.flatten().topk(count).indices.sort().values
