"""Dropout whose mask depends on the token, so that the backward pass draws it again and nothing is kept.

Srivastava et al. 2014, https://jmlr.org/papers/v15/srivastava14a.html, with the weights of what stays raised in training:
y = x ⊙ m / (1 − p), m = 0 with probability p. What comes back is dy ⊙ m / (1 − p): the same operation.
Shapes: N tokens, I columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from luthier.ops.draws import keep_entries, keep_mask, mask_sides

_ROWS_ON_CPU, _ENTRIES_ON_GPU = 256, 1 << 24
"""What is masked at once: on a CPU tokens, while their mask is in the cache; on a GPU entries, of which each takes a few bytes."""


@dataclass(frozen=True)
class Dropout:
    """Which entries are dropped: keyed by token. salt: of the place in the model."""

    keys_N: Tensor
    salt: int
    drop: float

    def __call__(self, x_NI: Tensor) -> Tensor:
        """x with dropped entries zero and the others divided by 1 − drop."""
        return cast(Tensor, _Dropped.apply(x_NI, self))  # type: ignore[no-untyped-call]

    def reference(self, x_NI: Tensor) -> Tensor:
        """The same by plain autograd."""
        keep_NI = keep_mask(self.keys_N, self.salt, x_NI.shape[1], self.drop)
        return torch.where(keep_NI, x_NI, 0) * self.factor

    @property
    def factor(self) -> float:
        """What stays is multiplied by it."""
        return 1 / (1 - self.drop)


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, dropout: Dropout) -> Tensor:
        ctx.dropout = dropout
        return _masked(x_NI, dropout)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (dy_NI,) = grad_outputs
        return _masked(dy_NI, ctx.dropout), None


def _masked(x_NI: Tensor, dropout: Dropout) -> Tensor:
    token_N, column_I = mask_sides(dropout.keys_N, dropout.salt, x_NI.shape[1])
    out_NI, zero = torch.empty_like(x_NI), x_NI.new_zeros(())
    rows = _ROWS_ON_CPU if x_NI.device.type == "cpu" else max(1, _ENTRIES_ON_GPU // x_NI.shape[1])
    for begin in range(0, len(x_NI), rows):
        some = slice(begin, begin + rows)
        keep_SI = keep_entries(token_N[some], column_I, dropout.drop)
        torch.where(keep_SI, x_NI[some], zero, out=out_NI[some]).mul_(dropout.factor)
    return out_NI
