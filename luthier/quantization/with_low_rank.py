"""A packed weight beside whose codes a part of low rank is held in full: W ≈ Q + B A.

What is quantized is the rest, W − B A, whose numbers are smaller once A and B hold the principal part of W, and so is what is lost.
Shapes: O outputs, I inputs, R rank.
"""

from __future__ import annotations

from torch import Tensor

from luthier.ops.spectrum import Factors
from luthier.quantization.packed import PackedWeight


class WithLowRank(PackedWeight):
    """Q, packed, and A (R, I) and B (O, R), fp32."""

    def __init__(self, rest: PackedWeight, part: Factors) -> None:
        super().__init__(rest.shape, rest.compute)
        self.kind = rest.kind
        self.rest = rest
        self.register_buffer("a_RI", part.right_RI)
        self.register_buffer("b_OR", part.left_OR)

    @property
    def part(self) -> Factors:
        """B A."""
        return Factors(self.get_buffer("b_OR"), self.get_buffer("a_RI"))

    def unpack_into(self, out_N: Tensor) -> None:
        """Q, to which B A is added in the number format asked for."""
        self.rest.unpack_into(out_N)
        out_N.view(self.shape).addmm_(self.part.left_OR.to(out_N.dtype), self.part.right_RI.to(out_N.dtype))

    def reference(self) -> Tensor:
        """Q + B A."""
        return self.rest.reference() + self.part.dense()
