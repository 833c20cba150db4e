"""Tensors that are cheaper to compute again than to keep until the backward pass.

A norm's output is kept by every layer that reads it, while its input is kept anyway. Within `Recomputable.hooks`,
whoever would keep a tensor that was named to it keeps nothing, and is handed the tensor computed again.

Hooks here and in `ops.gated` hand back what is to be kept without its graph: a tensor that an operation keeps of its own
result would else hold the operation that holds it, and a pass that is never carried backward would stay in memory for good.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def place_of(tensor: Tensor) -> tuple[int, int]:
    """Where a tensor's numbers begin; also of one that only pretends to have some, which has no address."""
    return int(tensor.untyped_storage()._cdata), int(tensor.storage_offset())


class Recomputable:
    """The tensors of one forward pass that need not be kept, each with the function that computes it again."""

    def __init__(self) -> None:
        self._of: dict[tuple[int, int], tuple[weakref.ref[Tensor], _Again]] = {}

    def add(self, tensor: Tensor, compute: Callable[[], Tensor]) -> None:
        """Name a contiguous tensor; it must not be changed as long as it lives, nor what `compute` reads."""
        self._of[place_of(tensor)] = (weakref.ref(tensor), _Again(compute))

    def hooks(self) -> saved_tensors_hooks:
        """Within: the tensors named are not kept."""
        return saved_tensors_hooks(self._keep, _give_back)

    def _keep(self, tensor: Tensor) -> Tensor | tuple[_Again, torch.Size]:
        named, again = self._of.get(place_of(tensor), (None, None))
        original = None if named is None else named()  # dead: its memory is another tensor's by now
        if again is None or original is None or original.numel() != tensor.numel() or not tensor.is_contiguous():
            return tensor.detach()
        again.users += 1
        return again, tensor.shape


class _Again:
    """A tensor that is computed when its first user asks, and let go when its last has it."""

    def __init__(self, compute: Callable[[], Tensor]) -> None:
        self.users = 0
        self._compute = compute
        self._value: Tensor | None = None

    def value(self) -> Tensor:
        """The tensor, for one of its users."""
        value = self._compute() if self._value is None else self._value
        self.users -= 1
        self._value = value if self.users > 0 else None
        return value


def _give_back(kept: Tensor | tuple[_Again, torch.Size]) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    again, shape = kept
    return again.value().view(shape)
