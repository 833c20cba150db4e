"""Packed weights, as a plan sees them unpacked: each form of them once, since all of one form take the same."""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor

from luthier.planner.tracker import Tracker
from luthier.quantization.packed import PackedWeight

_UNPACKING = "unpacking"


class UnpackedOnce:
    """Unpacks a weight of each form, and from then on only counts what that takes while it is done."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._taken: dict[Hashable, int] = {}

    def __call__(self, packed: PackedWeight, out_N: Tensor) -> None:
        """Unpack a weight into a tensor, or count as if it were."""
        tracker, form = self._tracker, _form(packed, out_N)
        if form not in self._taken:
            with tracker.doing(_UNPACKING, tracker.part):
                packed.unpack_into(out_N)
            peak = tracker.peaks.pop(_UNPACKING, None)
            self._taken[form] = 0 if peak is None else peak.num_bytes - tracker.num_bytes
        tracker.pass_through(self._taken[form])


def _form(packed: PackedWeight, out_N: Tensor) -> Hashable:
    """What decides the sizes of all that unpacking makes."""
    tensors = tuple((name, tensor.shape, tensor.dtype) for name, tensor in packed.named_buffers())
    return type(packed), packed.kind, packed.shape, out_N.dtype, tensors
