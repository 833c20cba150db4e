"""x times the entrywise product of two low-rank matrices, keeping x and the factors only.

Hyeon-Woo et al. 2021, https://arxiv.org/abs/2108.06098:  y = s · x Uᵀ,  U = (B₁ A₁) ⊙ (B₂ A₂).
U is as large as a weight and is built in each pass. Plain autograd would keep it and both products until the backward
pass; here they are built again. Backward, with dU = s · dyᵀ x:  dB₁ = (dU ⊙ B₂A₂) A₁ᵀ,  dA₁ = B₁ᵀ (dU ⊙ B₂A₂), the others
alike,  dx = s · dy U. The factors are fp32; U is computed in fp32 and used in the number format of x.
Shapes: N tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.ops.products import linear

Factors = tuple[Tensor, Tensor, Tensor, Tensor]
"""B₁ (O, R), A₁ (R, I), B₂ (O, R), A₂ (R, I)."""


def hadamard_product(factors: Factors) -> Tensor:
    """U, shape (O, I)."""
    b1_OR, a1_RI, b2_OR, a2_RI = factors
    return (b1_OR @ a1_RI).mul(b2_OR @ a2_RI)


def hadamard_linear_reference(x_NI: Tensor, factors: Factors, scale: float) -> Tensor:
    """s · x Uᵀ by plain autograd."""
    return F.linear(x_NI, hadamard_product(factors).to(x_NI.dtype)) * scale


def hadamard_linear(x_NI: Tensor, factors: Factors, scale: float) -> Tensor:
    """The same as `hadamard_linear_reference`, as one operation."""
    return cast(Tensor, _HadamardLinear.apply(x_NI, *factors, scale))  # type: ignore[no-untyped-call]


class _HadamardLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_NI: Tensor, b1_OR: Tensor, a1_RI: Tensor, b2_OR: Tensor, a2_RI: Tensor, scale: float
    ) -> Tensor:
        ctx.save_for_backward(x_NI, b1_OR, a1_RI, b2_OR, a2_RI)
        ctx.scale = scale
        return linear(x_NI, hadamard_product((b1_OR, a1_RI, b2_OR, a2_RI)).to(x_NI.dtype)).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        dy_NO = grad_outputs[0] * ctx.scale
        x_NI, b1_OR, a1_RI, b2_OR, a2_RI = ctx.saved_tensors
        one_OI, other_OI = b1_OR @ a1_RI, b2_OR @ a2_RI
        dx_NI = None
        if ctx.needs_input_grad[0]:
            dx_NI = linear(dy_NO, (one_OI * other_OI).to(dy_NO.dtype).t())
        du_OI = (dy_NO.t() @ x_NI).to(b1_OR.dtype)
        done_OI, dother_OI = other_OI.mul_(du_OI), one_OI.mul_(du_OI)
        return dx_NI, done_OI @ a1_RI.t(), b1_OR.t() @ done_OI, dother_OI @ a2_RI.t(), b2_OR.t() @ dother_OI, None
