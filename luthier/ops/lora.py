"""A frozen linear layer with low-rank updates, as one operation that keeps x and x Aᵀ only.

Hu et al. 2021, https://arxiv.org/abs/2106.09685:  y = x Wᵀ + c + s · drop(x) Aᵀ Bᵀ.
Tokens may have different updates: the product with W is then still one for all of them.
Backward, with b = s · dy B:  dA = bᵀ drop(x),  dB = s · dyᵀ (drop(x) Aᵀ),  dx = dy W + drop'(b A).
A and B are fp32 whatever W is; the branch is computed in the number format of x, and gradients come back in fp32.
Shapes: N tokens, I inputs, O outputs, R rank. W may be any (O, I) view, transposed or not, or packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.ops.dropout import Dropout
from luthier.ops.products import Weight, keep, kept, linear, plain_linear, product, product_back


def lora_linear_reference(
    x_NI: Tensor,
    weight_OI: Weight,
    bias_O: Tensor | None,
    a_RI: Tensor,
    b_OR: Tensor,
    scale: float,
    dropout: Dropout | None,
) -> Tensor:
    """The layer by plain autograd."""
    branch_NI = x_NI if dropout is None else dropout.reference(x_NI)
    side_NO = F.linear(F.linear(branch_NI, a_RI.to(x_NI.dtype)), b_OR.to(x_NI.dtype))
    return plain_linear(x_NI, weight_OI, bias_O) + side_NO * scale


@dataclass(frozen=True)
class Update:
    """The low-rank update of the tokens start..stop: A, B, s and the dropout of its input."""

    start: int
    stop: int
    a_RI: Tensor
    b_OR: Tensor
    scale: float
    dropout: Dropout | None

    def of(self, x_N: Tensor) -> Tensor:
        """Its tokens' rows."""
        return x_N[self.start : self.stop]


def lora_linear(
    x_NI: Tensor,
    weight_OI: Weight,
    bias_O: Tensor | None,
    a_RI: Tensor,
    b_OR: Tensor,
    scale: float,
    dropout: Dropout | None,
) -> Tensor:
    """The same as `lora_linear_reference` in one operation."""
    return updated_linear(x_NI, weight_OI, bias_O, [Update(0, len(x_NI), a_RI, b_OR, scale, dropout)])


def updated_linear(x_NI: Tensor, weight_OI: Weight, bias_O: Tensor | None, updates: Sequence[Update]) -> Tensor:
    """The layer with each update at its own tokens, of which no two updates share one; tokens without one are plain."""
    pairs = [tensor for update in updates for tensor in (update.a_RI, update.b_OR)]
    return cast(Tensor, _UpdatedLinear.apply(x_NI, weight_OI, bias_O, updates, *pairs))  # type: ignore[no-untyped-call]


class _UpdatedLinear(torch.autograd.Function):
    """`pairs` are the A and B of `updates` once more, for autograd to see."""

    @staticmethod
    def forward(
        ctx: Any,
        x_NI: Tensor,
        weight_OI: Weight,
        bias_O: Tensor | None,
        updates: Sequence[Update],
        *pairs: Tensor,
    ) -> Tensor:
        y_NO = product(x_NI, weight_OI, bias_O)
        narrow: list[Tensor] = []
        for update in updates:
            xa_NR = linear(_input(x_NI, update), update.a_RI.to(x_NI.dtype))
            update.of(y_NO).addmm_(xa_NR, update.b_OR.to(x_NI.dtype).t(), alpha=update.scale)
            narrow.append(xa_NR)
        keep(ctx, weight_OI, x_NI, *pairs, *narrow)
        ctx.updates = [(update.start, update.stop, update.scale, update.dropout) for update in updates]
        return y_NO

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (dy_NO,) = grad_outputs
        weight_OI, (x_NI, *saved) = kept(ctx)
        count = len(ctx.updates)
        dx_NI = product_back(dy_NO, weight_OI) if ctx.needs_input_grad[0] else None
        of_pairs: list[Tensor] = []
        for index, (start, stop, scale, dropout) in enumerate(ctx.updates):
            update = Update(start, stop, saved[2 * index], saved[2 * index + 1], scale, dropout)
            of_pairs += _gradients(update, x_NI, saved[2 * count + index], dy_NO, dx_NI)
        return dx_NI, None, None, None, *of_pairs


def _input(x_NI: Tensor, update: Update) -> Tensor:
    """drop(x) of an update's tokens."""
    own_NI = update.of(x_NI)
    return own_NI if update.dropout is None else update.dropout(own_NI)


def _gradients(
    update: Update, x_NI: Tensor, xa_NR: Tensor, dy_NO: Tensor, dx_NI: Tensor | None
) -> tuple[Tensor, Tensor]:
    """dA and dB; what comes back to x through the update is added to `dx_NI`."""
    dy_NO = update.of(dy_NO)
    a_RI = update.a_RI.to(dy_NO.dtype)
    branch_NR = linear(dy_NO, update.b_OR.to(dy_NO.dtype).t()).mul_(update.scale)
    da_RI = (branch_NR.t() @ _input(x_NI, update)).to(update.a_RI.dtype)
    # (xaᵀ dy)ᵀ rather than dyᵀ xa: the wide side last is nearly twice as fast
    db_OR = (xa_NR.t() @ dy_NO).mul_(update.scale).t().to(update.b_OR.dtype)
    if dx_NI is not None and update.dropout is None:
        update.of(dx_NI).addmm_(branch_NR, a_RI)
    elif dx_NI is not None and update.dropout is not None:
        update.of(dx_NI).add_(update.dropout(branch_NR @ a_RI))
    return da_RI, db_OR
