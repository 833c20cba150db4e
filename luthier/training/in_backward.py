"""Updates within the backward pass: each tensor moves as soon as its gradient is whole, and the gradient is let go of.

Lv et al. 2023, https://arxiv.org/abs/2306.09782: full tuning then holds the gradient of one tensor at a time rather than of all.
A gradient is never seen as a whole, so it is neither added up over micro-batches nor scaled down to a length.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from luthier.errors import NotFinite
from luthier.training.flat import FlatGroup
from luthier.training.optimizers import PerTensor


def descend(loss: Tensor, optimizer: PerTensor, lr: float) -> float:
    """Carry out the backward pass of a loss and, in it, one update of every tensor; returns the gradient's length.

    Raises NotFinite at a gradient that is not; tensors that came before it in the backward pass have moved by then.
    """
    squares: list[Tensor] = []

    def look(name: str, gradient: Tensor) -> None:
        square = torch.linalg.vector_norm(gradient).square()
        if not torch.isfinite(square):
            raise NotFinite(
                f"The gradient of {name} is not finite.",
                "Go on from the last checkpoint with 'luthier resume', or begin a new run with a lower training.peak_lr.",
            )
        squares.append(square)

    carry_out(loss, optimizer, lr, look)
    return math.sqrt(float(torch.stack(squares).sum())) if squares else 0.0


def carry_out(loss: Tensor, optimizer: PerTensor, lr: float, look: Callable[[str, Tensor], None]) -> None:
    """The backward pass of a loss and, in it, the updates. look: is shown each gradient before its tensor moves."""

    def update_of(flat: FlatGroup, name: str) -> Callable[[Tensor], None]:
        def update(tensor: Tensor) -> None:
            gradient = tensor.grad
            assert gradient is not None
            tensor.grad = None
            look(name, gradient)
            optimizer.step_of(flat, name, gradient, lr)

        return update

    hooks = [
        tensor.register_post_accumulate_grad_hook(update_of(flat, name))
        for flat in optimizer.trainables.groups
        for name, tensor in flat.group.tensors.items()
    ]
    try:
        loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
