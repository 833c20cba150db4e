"""RMS normalisation that keeps its input only.

Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467:  y = w ⊙ x / √(mean(x²) + ε).
Backward, with r = 1/√(mean(x²) + ε) and g = w ⊙ dy:  dx = r g − x r³ mean(g ⊙ x),  dw = Σ_N dy ⊙ x r.
Shapes: N tokens, D width.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor


def rms_norm_reference(x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """RMS normalisation by plain autograd; statistics in fp32, the result in the input's dtype."""
    wide_ND = x_ND.float()
    normal_ND = wide_ND * torch.rsqrt(wide_ND.square().mean(-1, keepdim=True) + eps)
    return (normal_ND * weight_D.float()).to(x_ND.dtype)


def rms_norm(x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """The same as `rms_norm_reference`, keeping x and one number a token for the backward pass."""
    if not torch.is_grad_enabled():
        return _normal(x_ND, weight_D, eps)[0]
    return cast(Tensor, _RMSNorm.apply(x_ND, weight_D, eps))  # type: ignore[no-untyped-call]


def _normal(x_ND: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """y, and r of each token."""
    wide_ND = x_ND.float()
    scale_N1 = torch.linalg.vecdot(wide_ND, wide_ND).div_(x_ND.shape[-1]).add_(eps).rsqrt_().unsqueeze(-1)
    return (wide_ND * scale_N1).mul_(weight_D).to(x_ND.dtype), scale_N1


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        y_ND, scale_N1 = _normal(x_ND, weight_D, eps)
        ctx.save_for_backward(x_ND, scale_N1, weight_D)
        return y_ND

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (dy_ND,) = grad_outputs
        x_ND, scale_N1, weight_D = ctx.saved_tensors
        wide_ND = x_ND.float()
        dx_ND = dw_D = None
        if ctx.needs_input_grad[0]:
            g_ND = dy_ND * weight_D
            pull_N1 = torch.linalg.vecdot(g_ND.float(), wide_ND).unsqueeze(-1).div_(x_ND.shape[-1]) * scale_N1**3
            dx_ND = (g_ND * scale_N1).addcmul_(wide_ND, pull_N1, value=-1).to(x_ND.dtype)
        if ctx.needs_input_grad[1]:
            dw_D = (dy_ND.float() * wide_ND * scale_N1).flatten(0, -2).sum(0).to(weight_D.dtype)
        return dx_ND, dw_D, None
