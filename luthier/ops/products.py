"""The matrix product x Wᵀ, by whichever of torch's two CPU libraries is the faster on this processor.

For fp32 torch calls MKL. On AMD processors with AVX-512, oneDNN, which torch carries too, is 5–15 % faster at the shapes
of linear layers and up to 40 % faster at a head's (its work space makes a training run a tenth larger); on Intel processors
the two are equal and MKL stays. torch gives no public way to choose, so the operation that its own compiler emits is
called where it exists, and `F.linear` elsewhere.
Shapes: N tokens, I inputs, O outputs.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x Wᵀ + c, shape (N, O); for use inside functions that compute their own gradients. W may be a transposed view."""
    is_plain_fp32 = x_NI.device.type == "cpu" and x_NI.dtype == weight_OI.dtype == torch.float32
    if is_plain_fp32 and prefers_onednn() and not torch.is_autocast_enabled("cpu"):
        product = torch.ops.mkldnn._linear_pointwise(x_NI, weight_OI, bias_O, "none", [], "")
        return cast(Tensor, product)
    return F.linear(x_NI, weight_OI, bias_O)


def frozen_linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """The same for a weight that does not train, with gradients for x (any leading shape) and for the bias; keeps W only.

    The bias may be of another number format than x; its gradient is summed in its own.
    """
    y_NO = cast(Tensor, _FrozenLinear.apply(x.reshape(-1, x.shape[-1]), weight_OI, bias_O))  # type: ignore[no-untyped-call]
    return y_NO.view(*x.shape[:-1], len(weight_OI))


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight_OI)
        ctx.bias_dtype = None if bias_O is None else bias_O.dtype
        return linear(x_NI, weight_OI, None if bias_O is None else bias_O.to(x_NI.dtype))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (dy_NO,) = grad_outputs
        (weight_OI,) = ctx.saved_tensors
        dx_NI = linear(dy_NO, weight_OI.t()) if ctx.needs_input_grad[0] else None
        db_O = dy_NO.sum(0, dtype=ctx.bias_dtype) if ctx.needs_input_grad[2] else None
        return dx_NI, None, db_O


@cache
def prefers_onednn() -> bool:
    """Whether this is an AMD processor with AVX-512 under a torch that has oneDNN's operation."""
    if platform.machine() != "x86_64" or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        torch.ops.mkldnn._linear_pointwise  # noqa: B018  (the look-up itself is the question)
    except (OSError, AttributeError):
        return False
    return "AuthenticAMD" in info
