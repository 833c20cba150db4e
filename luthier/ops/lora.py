"""A frozen linear layer with a low-rank update, as one operation that keeps x and x Aᵀ only.

Hu et al. 2021, https://arxiv.org/abs/2106.09685:  y = x Wᵀ + c + s · drop(x) Aᵀ Bᵀ.
Backward, with b = s · dy B:  dA = bᵀ drop(x),  dB = s · dyᵀ (drop(x) Aᵀ),  dx = dy W + drop'(b A).
A and B are fp32 whatever W is; the branch is computed in the number format of x, and gradients come back in fp32.
Shapes: N tokens, I inputs, O outputs, R rank. W may be any (O, I) view, transposed or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.ops.draws import keep_mask
from luthier.ops.products import linear


@dataclass(frozen=True)
class Dropout:
    """Which inputs of the branch are dropped: keyed by token, so that the backward pass draws them again."""

    keys_N: Tensor
    salt: int
    drop: float

    def __call__(self, x_NI: Tensor) -> Tensor:
        """x with dropped entries zero and the others divided by 1 − drop."""
        keep_NI = keep_mask(self.keys_N, self.salt, x_NI.shape[-1], self.drop)
        return torch.where(keep_NI, x_NI, 0).div_(1 - self.drop)


def lora_linear_reference(
    x_NI: Tensor,
    weight_OI: Tensor,
    bias_O: Tensor | None,
    a_RI: Tensor,
    b_OR: Tensor,
    scale: float,
    dropout: Dropout | None,
) -> Tensor:
    """The layer by plain autograd."""
    branch_NI = x_NI if dropout is None else dropout(x_NI)
    side_NO = F.linear(F.linear(branch_NI, a_RI.to(x_NI.dtype)), b_OR.to(x_NI.dtype))
    return F.linear(x_NI, weight_OI, bias_O) + side_NO * scale


def lora_linear(
    x_NI: Tensor,
    weight_OI: Tensor,
    bias_O: Tensor | None,
    a_RI: Tensor,
    b_OR: Tensor,
    scale: float,
    dropout: Dropout | None,
) -> Tensor:
    """The same as `lora_linear_reference` in one operation."""
    return cast(Tensor, _LoRALinear.apply(x_NI, weight_OI, bias_O, a_RI, b_OR, scale, dropout))  # type: ignore[no-untyped-call]


class _LoRALinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_NI: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        a_RI: Tensor,
        b_OR: Tensor,
        scale: float,
        dropout: Dropout | None,
    ) -> Tensor:
        branch_NI = x_NI if dropout is None else dropout(x_NI)
        xa_NR = linear(branch_NI, a_RI.to(x_NI.dtype))
        y_NO = linear(x_NI, weight_OI, bias_O)
        y_NO.addmm_(xa_NR, b_OR.to(x_NI.dtype).t(), alpha=scale)
        ctx.save_for_backward(x_NI, xa_NR, weight_OI, a_RI, b_OR)
        ctx.scale = scale
        ctx.dropout = dropout
        return y_NO

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (dy_NO,) = grad_outputs
        x_NI, xa_NR, weight_OI, a_RI, b_OR = ctx.saved_tensors
        branch_NR = linear(dy_NO, b_OR.to(dy_NO.dtype).t()).mul_(ctx.scale)
        input_NI = x_NI if ctx.dropout is None else ctx.dropout(x_NI)
        da_RI = (branch_NR.t() @ input_NI).to(a_RI.dtype)
        # (xaᵀ dy)ᵀ rather than dyᵀ xa: the wide side last is nearly twice as fast
        db_OR = (xa_NR.t() @ dy_NO).mul_(ctx.scale).t().to(b_OR.dtype)
        dx_NI = None
        if ctx.needs_input_grad[0]:
            dx_NI = linear(dy_NO, weight_OI.t())
            if ctx.dropout is None:
                dx_NI.addmm_(branch_NR, a_RI.to(dy_NO.dtype))
            else:
                dx_NI.add_(ctx.dropout(branch_NR @ a_RI.to(dy_NO.dtype)))
        return dx_NI, None, None, da_RI, db_OR, None, None
