"""An adapter folded into copies of the weights that it changes, for as long as many tokens are drawn from it.

Beside a frozen product, what an adapter adds is two thin products and a sum at every layer and token; folded, each layer is one
product: W' = W + ΔW. The base's own weights are not touched, so that they are the same bits afterwards, and whoever else reads
them meanwhile (the reference, a critic) reads what they always were; what it costs is memory for the weights of the adapted layers.
Shapes: N tokens, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from luthier.methods.bank import AdaptedLayer, AdaptedLinear, LinearBranch
from luthier.models.call import Run
from luthier.ops.products import linear
from luthier.quantization.packed import QuantizedLinear


class FoldedBranch(LinearBranch):
    """A whole weight (O, I) and bias (O,) in the place of the frozen ones. Without gradients; nothing of it trains."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        super().__init__()
        self.weight_OI, self.bias_O = weight_OI, bias_O

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """None."""
        return {}

    def forward(self, x_NI: Tensor, layer: AdaptedLinear, run: Run) -> Tensor:
        """x W'ᵀ + c', shape (N, O)."""
        return linear(x_NI, self.weight_OI, self.bias_O)


def can_fold(layers: Mapping[str, AdaptedLayer], name: str) -> bool:
    """Whether an adapter's layers can be folded: linear ones over plain fp32 weights.

    In half precision W + ΔW would be rounded, and a small change lost in it: answers would be another policy's.
    """
    return bool(layers) and all(
        isinstance(layer, AdaptedLinear)
        and isinstance(layer.branch(name), LinearBranch)
        and not isinstance(layer.base, QuantizedLinear)
        and layer.weight.dtype == torch.float32
        for layer in layers.values()
    )


@contextmanager
def folded(layers: Mapping[str, AdaptedLayer], name: str) -> Iterator[str]:
    """While it is open, an adapter of the name that is given computes what the adapter `name` does as it stands now."""
    own = f"{name}-folded"
    try:
        for layer in layers.values():
            assert isinstance(layer, AdaptedLinear)
            layer.add(own, _folded_branch(layer, name))
        yield own
    finally:
        for layer in layers.values():
            if own in layer.branches:
                del layer.branches[own]


@torch.no_grad()
def _folded_branch(layer: AdaptedLinear, name: str) -> FoldedBranch:
    branch = layer.branch(name)
    assert isinstance(branch, LinearBranch)
    weight_OI, bias_O = branch.merged(layer.weight, None if layer.bias is None else layer.bias.float())
    return FoldedBranch(weight_OI.contiguous(), bias_O)
