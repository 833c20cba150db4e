"""One adapted layer of a tiny model, called by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.methods.bank import AdaptedLinear
from luthier.methods.contract import Attachment
from luthier.models.call import Call, Run, calling


def first_layer(attachment: Attachment) -> AdaptedLinear:
    """The first linear layer that an adapter changes."""
    layers = vars(attachment)["layers"]
    layer = next(iter(layers.values()))
    assert isinstance(layer, AdaptedLinear)
    return layer


def some_inputs(layer: AdaptedLinear, num_tokens: int = 5) -> Tensor:
    """Random inputs (N, I) that fit a layer."""
    return torch.randn(num_tokens, layer.weight.shape[1], generator=torch.Generator().manual_seed(3))


def output_of(layer: AdaptedLinear, x_NI: Tensor, keys_N: Tensor | None = None) -> Tensor:
    """What the layer gives with the adapter called default; keys_N turns dropout on."""
    with calling(Call(None, (Run(0, len(x_NI), "default"),), keys_N)):
        y_NO: Tensor = layer(x_NI)
    return y_NO


def dense(layer: AdaptedLinear, x_NI: Tensor, weight_OI: Tensor) -> Tensor:
    """x weightᵀ + the layer's own bias."""
    y_NO = x_NI @ weight_OI.t()
    return y_NO if layer.bias is None else y_NO + layer.bias
