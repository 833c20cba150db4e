"""The product of a gated feed-forward layer, keeping its two inputs only.

Shazeer 2020, https://arxiv.org/abs/2002.05202:  h = act(gate) ⊙ up, with act SiLU (SwiGLU) or GELU (GEGLU).
Backward:  d up = dh ⊙ act(gate),  d gate = dh ⊙ up ⊙ act'(gate); act(gate) is computed again rather than kept.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from luthier.ops.recompute import place_of

Activation = Literal["silu", "gelu", "gelu_tanh"]


def activate(x: Tensor, activation: Activation) -> Tensor:
    """The activation by its name."""
    if activation == "silu":
        return F.silu(x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


def gated_product_reference(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """act(gate) ⊙ up by plain autograd."""
    return activate(gate, activation) * up


def gated_product(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """The same as `gated_product_reference`, keeping gate and up for the backward pass and nothing else."""
    if not torch.is_grad_enabled():
        return activate(gate, activation).mul_(up)
    return cast(Tensor, _GatedProduct.apply(gate, up, activation))  # type: ignore[no-untyped-call]


def without_keeping(product: Tensor, gate: Tensor, up: Tensor, activation: Activation) -> saved_tensors_hooks:
    """Within: whoever would keep `product` for its backward pass keeps nothing, and is handed it computed again.

    The product is as wide as gate and up, which are kept anyway: a third of the layer's memory for one multiplication.
    """
    place, count = place_of(product), product.numel()
    gate, up = gate.detach(), up.detach()

    def keep(tensor: Tensor) -> Tensor | torch.Size:
        is_product = place_of(tensor) == place and tensor.numel() == count and tensor.is_contiguous()
        return tensor.shape if is_product else tensor.detach()

    def give_back(kept: Tensor | torch.Size) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        return activate(gate, activation).mul_(up).view(kept)

    return saved_tensors_hooks(keep, give_back)


def _activation_backward(dy: Tensor, x: Tensor, activation: Activation) -> Tensor:
    """dy ⊙ act'(x), written over dy."""
    if activation == "silu":
        return cast(Tensor, torch.ops.aten.silu_backward.grad_input(dy, x, grad_input=dy))
    approximate = "tanh" if activation == "gelu_tanh" else "none"
    return cast(Tensor, torch.ops.aten.gelu_backward.grad_input(dy, x, approximate=approximate, grad_input=dy))


class _GatedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return activate(gate, activation).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (dh,) = grad_outputs
        gate, up = ctx.saved_tensors
        d_gate = _activation_backward(dh * up, gate, ctx.activation) if ctx.needs_input_grad[0] else None
        d_up = activate(gate, ctx.activation).mul_(dh) if ctx.needs_input_grad[1] else None
        return d_gate, d_up, None
