"""Trainable tensors as views of one flat vector for each group, and their gradients as views of another.

One vector makes the optimizer one call, the norm one reduction, and the sum over workers one addition each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from luthier.methods.contract import Group

_ALIGN = 16  # floats: each tensor begins on a cache line, so that matrix products round alike wherever they stand


class FlatGroup:
    """A group's tensors laid end to end; the parameters become views of `vector`."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.spans: dict[str, tuple[int, int]] = {}
        size = 0
        for name, tensor in group.tensors.items():
            self.spans[name] = (size, size + tensor.numel())
            size += -(-tensor.numel() // _ALIGN) * _ALIGN
        device = next(iter(group.tensors.values())).device
        self.vector = nn.Parameter(torch.zeros(size, device=device))
        for name, tensor in group.tensors.items():
            view = self.view(self.vector.data, name)
            view.copy_(tensor.data)
            tensor.data = view

    def view(self, vector: Tensor, name: str) -> Tensor:
        """The stretch of a vector of this layout that belongs to a tensor, in the tensor's shape."""
        start, stop = self.spans[name]
        return vector[start:stop].view(self.group.tensors[name].shape)

    def views(self, vector: Tensor) -> list[Tensor]:
        """All tensors' stretches, in order."""
        return [self.view(vector, name) for name in self.spans]


class FlatTrainables:
    """All groups, and one set of gradient vectors for each worker."""

    def __init__(self, groups: Sequence[Group], workers: int) -> None:
        self.groups = [FlatGroup(group) for group in groups]
        self.tensors = _tensors(self.groups)
        self.gradients = _zeros(self.groups, workers)
        self._views = _views(self.groups, self.gradients)

    def exchange(self, groups: Sequence[Group]) -> None:
        """Hold these groups from now on; one of the same tensors as a group of before stays as it is laid."""
        held = {_ids(flat.group): flat for flat in self.groups}
        self.groups = [held.get(_ids(group)) or FlatGroup(group) for group in groups]
        self.tensors = _tensors(self.groups)
        workers = len(self.gradients)
        self.gradients, self._views = [], []  # these are let go of before there are others
        for flat in self.groups:
            flat.vector.grad = None
        self.gradients = _zeros(self.groups, workers)
        self._views = _views(self.groups, self.gradients)

    def clear_gradients(self) -> None:
        """Set every worker's gradients to zero."""
        for vectors in self.gradients:
            for vector in vectors:
                vector.zero_()

    def add_gradients(self, worker: int, gradients: Sequence[Tensor | None]) -> None:
        """Add the gradients of a micro-batch, one for each tensor in order, to a worker's vectors."""
        pairs = [(view, g) for view, g in zip(self._views[worker], gradients, strict=True) if g is not None]
        torch._foreach_add_([view for view, _ in pairs], [gradient for _, gradient in pairs])

    def sum_gradients(self) -> list[Tensor]:
        """Worker 0 + 1 + …, always in this order, in worker 0's vectors; they become the gradients of the parameters."""
        for index, group in enumerate(self.groups):
            total = self.gradients[0][index]
            for vectors in self.gradients[1:]:
                total.add_(vectors[index])
            group.vector.grad = total
        return self.gradients[0]

    def by_name(self, vectors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Views of flat vectors, one for each group, by the tensors that they belong to."""
        pairs = zip(self.groups, vectors, strict=True)
        return {name: group.view(vector, name) for group, vector in pairs for name in group.spans}

    def named(self) -> dict[str, Tensor]:
        """A copy of every trainable tensor by name, on the CPU."""
        return {
            name: group.view(group.vector.data, name).clone().cpu() for group in self.groups for name in group.spans
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over tensors by name; the names and shapes must be those of `named`."""
        for group in self.groups:
            for name in group.spans:
                group.view(group.vector.data, name).copy_(tensors[name])


def _ids(group: Group) -> tuple[int, ...]:
    """Which tensors these are."""
    return tuple(id(tensor) for tensor in group.tensors.values())


def _tensors(groups: Sequence[FlatGroup]) -> list[nn.Parameter]:
    return [tensor for flat in groups for tensor in flat.group.tensors.values()]


def _zeros(groups: Sequence[FlatGroup], workers: int) -> list[list[Tensor]]:
    return [[torch.zeros_like(flat.vector) for flat in groups] for _ in range(workers)]


def _views(groups: Sequence[FlatGroup], gradients: list[list[Tensor]]) -> list[list[Tensor]]:
    """For each worker the gradients of all tensors, in order."""
    return [
        [view for flat, vector in zip(groups, vectors, strict=True) for view in flat.views(vector)]
        for vectors in gradients
    ]
