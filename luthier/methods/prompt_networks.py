"""Parts of the networks that make a soft prompt in training, with torch's own starts but from a generator of ours."""

from __future__ import annotations

import torch
from torch import nn


def empty_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer on the CPU whose numbers are yet to be drawn."""
    layer = nn.Linear(inputs, outputs, device="meta")
    _allocate(layer)
    return layer


def empty_lstm(inputs: int, hidden: int, num_layers: int) -> nn.LSTM:
    """A bidirectional LSTM over rows (V, I), on the CPU, whose numbers are yet to be drawn."""
    layer = nn.LSTM(inputs, hidden, num_layers=num_layers, bidirectional=True, device="meta")
    _allocate(layer)
    return layer


def _allocate(layer: nn.Module) -> None:
    """Give a layer memory; as torch's `to_empty`, and in a pretended step too."""
    for name, tensor in list(layer.named_parameters()):
        setattr(layer, name, nn.Parameter(torch.empty(tensor.shape)))


@torch.no_grad()
def draw_as_torch_does(network: nn.Module, generator: torch.Generator) -> None:
    """Draw weights and biases uniformly in ± 1/√I for linear layers with I inputs, in ± 1/√H for an LSTM of width H."""
    for part in network.modules():
        if isinstance(part, nn.Linear):
            bound = part.in_features**-0.5
        elif isinstance(part, nn.LSTM):
            bound = part.hidden_size**-0.5
        else:
            continue
        for tensor in part.parameters(recurse=False):
            tensor.copy_((torch.rand(tensor.shape, generator=generator) * 2 - 1) * bound)
