"""A weight in few bits, and the frozen linear layer that computes on it.

Dettmers et al. 2023, https://arxiv.org/abs/2305.14314, equation 5: the weight is unpacked for each product, forward and
backward, and never kept. The backward pass keeps the packed weight only, of the input nothing.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from luthier.ops.buffers import Buffers
from luthier.ops.products import Packed, frozen_linear

BUFFERS = Buffers()
"""Where each thread unpacks the weight that it multiplies with: as large as the largest one, whatever their number."""


_UNPACK: ContextVar[Callable[[PackedWeight, Tensor], None] | None] = ContextVar("unpack", default=None)


@contextmanager
def unpacked_by(unpack: Callable[[PackedWeight, Tensor], None]) -> Iterator[None]:
    """Within, weights are unpacked by this function: for a look at what that takes, where nothing is computed."""
    token = _UNPACK.set(unpack)
    try:
        yield
    finally:
        _UNPACK.reset(token)


class PackedWeight(nn.Module, Packed):
    """A frozen weight (O, I); its tensors are buffers of the module.

    kind: what recipes call the format. shape: (O, I). compute: the number format of products with it; None: that of what it
    is multiplied with.
    """

    kind: str

    def __init__(self, shape: tuple[int, int], compute: torch.dtype | None) -> None:
        super().__init__()
        self.shape = shape
        self.compute = compute

    @abstractmethod
    def unpack_into(self, out_N: Tensor) -> None:
        """Write the weight, row by row, into a tensor (O · I,) of any float format."""

    @abstractmethod
    def reference(self) -> Tensor:
        """The weight (O, I), fp32, by the plain formula."""

    @property
    def num_bytes(self) -> int:
        """What the weight takes."""
        return sum(tensor.nbytes for tensor in self.buffers())

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return next(self.buffers()).device

    @torch.no_grad()
    def lent(self, dtype: torch.dtype) -> Tensor:
        """As `Packed` says."""
        rows, columns = self.shape
        out_N = BUFFERS.take("weight", rows * columns, self.compute or dtype, self.device)
        self._unpack(out_N)
        return out_N.view(rows, columns)

    @torch.no_grad()
    def dense(self, dtype: torch.dtype) -> Tensor:
        """As `Packed` says."""
        out_N = torch.empty(self.shape[0] * self.shape[1], dtype=dtype, device=self.device)
        self._unpack(out_N)
        return out_N.view(self.shape)

    def _unpack(self, out_N: Tensor) -> None:
        unpack = _UNPACK.get()
        self.unpack_into(out_N) if unpack is None else unpack(self, out_N)


class QuantizedLinear(nn.Module):
    """A frozen linear layer over a packed weight. The bias, if there is one, is as it was.

    dtype: the number format of the model, which the layer has where it is unpacked for good. is_transposed: whether it then
    is a `Conv1D`, as in GPT-2, whose files have the weight as (I, O).
    """

    def __init__(
        self, packed: PackedWeight, bias_O: nn.Parameter | None, dtype: torch.dtype, is_transposed: bool = False
    ) -> None:
        super().__init__()
        self.weight = packed  # where others look for a weight, there is something that is no tensor
        self.bias: nn.Parameter | None
        self.register_parameter("bias", bias_O)
        self.dtype = dtype
        self.is_transposed = is_transposed
        self.out_features, self.in_features = packed.shape

    @property
    def packed(self) -> PackedWeight:
        """The packed weight."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """x Wᵀ + c over any leading axes."""
        return frozen_linear(x, self.packed, self.bias)

    def dense(self) -> Tensor:
        """The weight (O, I) in memory of its own."""
        return self.packed.dense(self.dtype)

    def dense_layer(self) -> nn.Module:
        """The plain frozen layer that computes the same."""
        with torch.device("meta"):
            layer = (
                Conv1D(self.out_features, self.in_features)  # type: ignore[no-untyped-call]
                if self.is_transposed
                else nn.Linear(self.in_features, self.out_features, bias=False)
            )
        weight_OI = self.dense()
        layer.weight = nn.Parameter(
            weight_OI.t().contiguous() if self.is_transposed else weight_OI, requires_grad=False
        )
        layer.register_parameter("bias", self.bias)
        return layer
