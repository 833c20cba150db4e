"""What a check measures: how far two things are apart that ought to be the same."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDING = 1e-5
"""How far apart two ways of computing the same may come in fp32, as a share of the largest number compared."""

DEEP = 1e-4
"""The same for a gradient that passed other operations in every layer, where the rounding of all of them adds up."""

COARSE = 0.05
"""The same where weights are in half precision, which rounds each number to 2 or 3 digits."""

SUMS = 1e-6
"""How far apart two orders of summing the loss of a step may come, as a share of it."""


@dataclass(frozen=True)
class Measured:
    """One comparison: what was compared, how far it is apart, and how far it may be.

    difference: a share of the largest number compared; with a tolerance of 0 the largest difference itself. Infinite where
    the two do not even have the same shape, or hold what is no number. fault: why nothing could be measured.
    """

    what: str
    difference: float | None
    tolerance: float
    fault: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the two are the same."""
        return self.difference is not None and self.difference <= self.tolerance


@dataclass(frozen=True)
class Lacking:
    """Why a check has nothing to compare in a model."""

    reason: str


Found = list[Measured] | Lacking

Tensors = Tensor | Mapping[str, Tensor]


def rounding_of(dtype: torch.dtype) -> float:
    """How far apart two ways of computing the same may come over weights of a number format."""
    return ROUNDING if dtype == torch.float32 else COARSE


def apart(one: Tensors, other: Tensors) -> float:
    """The largest difference as a share of the largest number of `other`; infinite where the two cannot be compared."""
    difference = unlike(one, other)
    largest = max((_largest(tensor) for tensor in _named(other).values()), default=0.0)
    if difference == 0 or not math.isfinite(difference):
        return difference
    return difference / largest if largest else math.inf


def unlike(one: Tensors, other: Tensors) -> float:
    """The largest difference; infinite where names or shapes differ, or something is not finite."""
    ones, others = _named(one), _named(other)
    if {name: t.shape for name, t in ones.items()} != {name: t.shape for name, t in others.items()}:
        return math.inf
    worst = [_largest(ones[name].detach().double() - others[name].detach().double()) for name in ones]
    return max(worst, default=0.0) if all(map(math.isfinite, worst)) else math.inf


def _named(tensors: Tensors) -> Mapping[str, Tensor]:
    return {"": tensors} if isinstance(tensors, Tensor) else tensors


def _largest(tensor: Tensor) -> float:
    return float(tensor.detach().abs().max()) if tensor.numel() else 0.0
