"""The matrix product x Wᵀ, by whichever of torch's two CPU libraries is the faster on this processor.

For fp32 torch calls MKL. On AMD processors with AVX-512, oneDNN, which torch carries too, is 5–15 % faster at the shapes
of linear layers and up to 40 % faster at a head's (its work space makes a training run a tenth larger); on those with AVX2 alone
it is the faster at a head's only, by a fifth to two thirds; on Intel processors the two are equal and MKL stays. torch gives no public way to choose, so the operation that its own compiler emits is
called where it exists, and `F.linear` elsewhere.
Shapes: N tokens, I inputs, O outputs.
"""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

_HEAD = 16_384  # outputs from which on a product is a head's


class Packed(ABC):
    """A frozen weight (O, I) that is held in fewer bits than it is multiplied in."""

    shape: tuple[int, int]

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it is."""

    @abstractmethod
    def lent(self, dtype: torch.dtype) -> Tensor:
        """The weight (O, I) in a buffer of this thread, which the thread's next call overwrites.

        dtype: that of what it is multiplied with. It comes in this format, or in the one that its settings choose.
        """

    @abstractmethod
    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight (O, I) in memory of its own."""


Weight = Tensor | Packed
"""A weight (O, I) to multiply with. One that is packed has no gradient."""


def product(x_NI: Tensor, weight_OI: Weight, bias_O: Tensor | None = None) -> Tensor:
    """x Wᵀ + c, shape (N, O), as `linear` gives it; a packed weight is unpacked for it, and decides the number format."""
    dense_OI = lent(weight_OI, x_NI.dtype)
    bias_O = None if bias_O is None else bias_O.to(dense_OI.dtype)
    return linear(x_NI.to(dense_OI.dtype), dense_OI, bias_O).to(x_NI.dtype)


def product_back(dy_NO: Tensor, weight_OI: Weight) -> Tensor:
    """dy W, shape (N, I)."""
    dense_OI = lent(weight_OI, dy_NO.dtype)
    return linear(dy_NO.to(dense_OI.dtype), dense_OI.t()).to(dy_NO.dtype)


def lent(weight_OI: Weight, dtype: torch.dtype) -> Tensor:
    """The weight to compute with at once: itself, or unpacked into the thread's buffer."""
    return weight_OI if isinstance(weight_OI, Tensor) else weight_OI.lent(dtype)


def keep(ctx: Any, weight_OI: Weight, *tensors: Tensor) -> None:
    """Keep a weight and tensors for a backward pass, which gets them from `kept`; a packed one stays packed."""
    is_dense = isinstance(weight_OI, Tensor)
    ctx.packed = None if is_dense else weight_OI
    ctx.save_for_backward(*((weight_OI,) if is_dense else ()), *tensors)


def kept(ctx: Any) -> tuple[Weight, list[Tensor]]:
    """What `keep` kept."""
    if ctx.packed is not None:
        return ctx.packed, list(ctx.saved_tensors)
    weight_OI, *tensors = ctx.saved_tensors
    return weight_OI, tensors


def plain_linear(x: Tensor, weight_OI: Weight, bias_O: Tensor | None = None) -> Tensor:
    """x Wᵀ + c by plain autograd; over a packed weight by the one operation that knows it."""
    return F.linear(x, weight_OI, bias_O) if isinstance(weight_OI, Tensor) else frozen_linear(x, weight_OI, bias_O)


def linear(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x Wᵀ + c, shape (N, O); for use inside functions that compute their own gradients. W may be a transposed view."""
    is_plain_fp32 = x_NI.device.type == "cpu" and x_NI.dtype == weight_OI.dtype == torch.float32
    if is_plain_fp32 and prefers_onednn(weight_OI.shape[0]) and not torch.is_autocast_enabled("cpu"):
        product = torch.ops.mkldnn._linear_pointwise(x_NI, weight_OI, bias_O, "none", [], "")
        return cast(Tensor, product)
    return F.linear(x_NI, weight_OI, bias_O)


def frozen_linear(x: Tensor, weight_OI: Weight, bias_O: Tensor | None = None) -> Tensor:
    """The same for a weight that does not train, with gradients for x (any leading shape) and for the bias; keeps W only.

    The bias may be of another number format than x; its gradient is summed in its own.
    """
    y_NO = cast(Tensor, _FrozenLinear.apply(x.reshape(-1, x.shape[-1]), weight_OI, bias_O))  # type: ignore[no-untyped-call]
    return y_NO.view(*x.shape[:-1], weight_OI.shape[0])


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Weight, bias_O: Tensor | None) -> Tensor:
        keep(ctx, weight_OI)
        ctx.dtype = x_NI.dtype
        ctx.bias_dtype = None if bias_O is None else bias_O.dtype
        return product(x_NI.to(_computed_in(x_NI)), weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (dy_NO,) = grad_outputs
        weight_OI, _ = kept(ctx)
        dx_NI = product_back(dy_NO, weight_OI).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        db_O = dy_NO.sum(0, dtype=ctx.bias_dtype) if ctx.needs_input_grad[2] else None
        return dx_NI, None, db_O


def _computed_in(x: Tensor) -> torch.dtype:
    """The number format that products are computed in: that of the input, or the one that autocast has chosen."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def prefers_onednn(outputs: int) -> bool:
    """Whether a product with so many outputs is for oneDNN here."""
    least = _least_outputs()
    return least is not None and outputs >= least


@cache
def _least_outputs() -> int | None:
    """With how many outputs and more oneDNN is the faster: on AMD processors, under a torch that has its operation."""
    least = {"AVX512": 1, "AVX2": _HEAD}.get(torch.backends.cpu.get_cpu_capability())
    if platform.machine() != "x86_64" or least is None:
        return None
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        torch.ops.mkldnn._linear_pointwise  # noqa: B018  (the look-up itself is the question)
    except (OSError, AttributeError):
        return None
    return least if "AuthenticAMD" in info else None
