"""The layers that HQQ quantized, used as its files hold them.

Badri & Shaji 2023, https://mobiusml.github.io/hqq_blog/: the weight, seen as a matrix of A rows and B columns in which each row
(axis 1) or each column (axis 0) is a group, is

    w = (c − z) · s,   s and z of its group, z a float.

Of a layer P: `P.W_q`, the codes; `P.scale` and `P.zero`, (A, 1) or (1, B); `P.shape`, (O, I); and `P.nbits`, `P.axis`, `P.group_size`
and others that these follow from. A byte holds the codes of 8 / b rows: the first that of the first A b / 8 rows, in its highest bits;
of three bits an int32 holds ten, the last rows filled up.
Shapes: O outputs, I inputs, A and B with A · B = O · I, b bits.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from luthier.quantization.faults import layer_fault
from luthier.quantization.packed import PackedWeight

HQQ_ENDINGS = (
    "W_q", "scale", "zero", "shape", "nbits", "axis", "group_size", "packing", "unpack_view_dtype", "view_as_float",
    "quant_scale", "quant_zero", "compute_dtype", "offload_meta", "encoded_state_dict", "stores_quant_config",
    "channel_wise", "optimize", "round_zero",
)  # fmt: skip
"""What stands in the place of a layer's weight."""

_NEEDED = ("W_q", "scale", "zero", "shape", "nbits", "axis")
_BITS = (1, 2, 3, 4, 8)
_NUMBERS_AT_ONCE = 2**20
"""Numbers that are unpacked at a time: what that takes beside the buffer stays small."""


class HQQWeight(PackedWeight):
    """Codes of so many bits as HQQ packs them, and the scale and the zero point of each group."""

    kind = "hqq"

    def __init__(self, shape: tuple[int, int], bits: int, words_PB: Tensor, scale: Tensor, zero: Tensor) -> None:
        """words_PB: uint8, or int32 where three bits are packed. scale, zero: fp16, (A, 1) or (1, B)."""
        super().__init__(shape, None)
        self.bits = bits
        self.register_buffer("words_PB", words_PB)
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero)

    def unpack_into(self, out_N: Tensor) -> None:
        """By the formula, some rows at a time: computed in fp32, rounded once."""
        out_AB = out_N.view(-1, self.get_buffer("words_PB").shape[1])
        step = max(_NUMBERS_AT_ONCE // out_AB.shape[1], 1)
        for place in range(self._in_a_word):
            first = place * self._packed_rows
            for start in range(first, min(first + self._packed_rows, len(out_AB)), step):
                stop = min(start + step, first + self._packed_rows, len(out_AB))
                out_AB[start:stop].copy_(self._rows(place, start, stop))

    def reference(self) -> Tensor:
        """All at once."""
        words_PB = self.get_buffer("words_PB")
        codes_AB = torch.cat([self._codes(words_PB, place) for place in range(self._in_a_word)])
        codes_AB = codes_AB[: self.shape[0] * self.shape[1] // codes_AB.shape[1]]
        scale, zero = self.get_buffer("scale"), self.get_buffer("zero")
        return ((codes_AB - zero.float()) * scale.float()).view(self.shape)

    @property
    def _in_a_word(self) -> int:
        return 10 if self.bits == 3 else 8 // self.bits

    @property
    def _packed_rows(self) -> int:
        return len(self.get_buffer("words_PB"))

    def _rows(self, place: int, start: int, stop: int) -> Tensor:
        words_PB = self.get_buffer("words_PB")[start - place * self._packed_rows : stop - place * self._packed_rows]
        scale, zero = (
            each[start:stop] if each.shape[1] == 1 else each
            for each in (self.get_buffer("scale"), self.get_buffer("zero"))
        )
        return self._codes(words_PB, place).sub_(zero).mul_(scale)

    def _codes(self, words_PB: Tensor, place: int) -> Tensor:
        """The codes at a place of each word, fp32."""
        shift = self.bits * (self._in_a_word - 1 - place)
        codes_PB: Tensor = (words_PB >> shift) & (2**self.bits - 1)
        return codes_PB.float()


def blank_hqq(bits: int, group_size: int, axis: int, shape: tuple[int, int], device: torch.device) -> HQQWeight:
    """A weight of that shape, of any numbers."""
    count = shape[0] * shape[1]
    groups = -(-count // group_size)
    rows, columns = (groups, group_size) if axis == 1 else (group_size, groups)
    in_a_word, dtype = (10, torch.int32) if bits == 3 else (8 // bits, torch.uint8)
    words_PB = torch.empty(-(-rows // in_a_word), columns, dtype=dtype, device=device)
    form = (groups, 1) if axis == 1 else (1, groups)
    scale, zero = (torch.empty(form, dtype=torch.float16, device=device) for _ in range(2))
    return HQQWeight(shape, bits, words_PB, scale, zero)


def read_hqq(name: str, tensors: Mapping[str, Tensor]) -> HQQWeight:
    """A layer's weight. Raises DataError, naming the layer, if its tensors do not belong together or are in a form not read."""
    lacking = [ending for ending in _NEEDED if ending not in tensors]
    if lacking:
        raise layer_fault(name, f"lacks {', '.join(lacking)}")
    bits, axis = (int(tensors[key]) for key in ("nbits", "axis"))
    words_PB, scale, zero = (tensors[key] for key in ("W_q", "scale", "zero"))
    whole = words_PB.dtype == (torch.int32 if bits == 3 else torch.uint8)
    if bits not in _BITS or not whole or int(tensors.get("view_as_float", torch.tensor(0))):
        raise layer_fault(name, f"has {bits} bits in {words_PB.dtype}, a form that is not read")
    rows, columns = (int(size) for size in tensors["shape"])
    groups = rows * columns // words_PB.shape[1] if axis == 1 else words_PB.shape[1]
    in_words = words_PB.numel() * (10 if bits == 3 else 8 // bits)
    if (
        scale.numel() != groups
        or zero.numel() != groups
        or in_words - rows * columns not in range(10 * words_PB.shape[1])
    ):
        shapes = f"{rows} × {columns} numbers, codes {tuple(words_PB.shape)} and scales {tuple(scale.shape)}"
        raise layer_fault(name, f"has {shapes}, which do not fit")
    form = (-1, 1) if axis == 1 else (1, -1)
    return HQQWeight(
        (rows, columns), bits, words_PB.clone(), scale.half().reshape(form).clone(), zero.half().reshape(form).clone()
    )
