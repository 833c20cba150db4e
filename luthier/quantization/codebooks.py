"""The numbers that codes of few bits stand for.

NF4: Dettmers et al. 2023, https://arxiv.org/abs/2305.14314, appendix E: quantiles of a normal distribution, with an exact
zero. The literals are those that files are written with; computed again, they differ in the last bit.
FP4: what bitsandbytes calls so: three bits after the sign, by code and not by size, divided by 12. It is not the E2M1 below.
E2M1: four-bit floats of the Open Compute Project's microscaling formats, https://arxiv.org/abs/2310.10537.
Dynamic map: Dettmers et al. 2022, https://arxiv.org/abs/2110.02861, section 2.1: eight bits, of which the leading ones give
a power of ten and the rest divide [0.1, 1] evenly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.ops.kept import kept

_NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
_FP4_TWELFTHS = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_DECADES = 7
_HALF = 2**15


@dataclass(frozen=True, eq=False)
class Codebook:
    """What each code stands for.

    values_K: fp32, by code, in any order. codes_K: the codes by the size of what they stand for. edges: the K − 1 borders
    between neighbours in that order, their midpoints.
    """

    name: str
    values_K: Tensor
    codes_K: Tensor
    edges: Tensor

    def nearest(self, x: Tensor) -> Tensor:
        """The code, uint8, of the value nearest to each number (finite, fp32); of two as near, that of the lesser value.

        The first 16 bits of a number leave two codes to choose between, whose border decides, if no two borders lie nearer to
        each other than 1/128 of their size: `nearest_reference` without a search.
        """
        bins = _bins(self, x.device)
        flat_N = x.contiguous().view(-1)
        place_N = bins.place_P.index_select(0, (flat_N.view(torch.int32) >> 16) + _HALF)
        place_N += flat_N > bins.edges_K.index_select(0, place_N)
        return bins.codes_K.index_select(0, place_N).view(x.shape)

    def nearest_reference(self, x: Tensor) -> Tensor:
        """The same by a search among the edges."""
        return self.codes_K[torch.bucketize(x, self.edges)]

    def values_on(self, device: torch.device) -> Tensor:
        """The values, copied to a device once."""
        return _values_on(self, device)


@dataclass(frozen=True)
class _Bins:
    """place_P: of numbers that begin with these 16 bits (negative ones first), how many edges lie below the least. edges_K: the
    border above each place; ∞ above the last. codes_K: the code of each place.
    """

    place_P: Tensor
    edges_K: Tensor
    codes_K: Tensor


@kept()
def _bins(book: Codebook, device: torch.device) -> _Bins:
    first_P = torch.arange(-_HALF, _HALF, dtype=torch.int32) << 16
    ends = [
        torch.bucketize(bits.view(torch.float32), book.edges, out_int32=True) for bits in (first_P, first_P | 0xFFFF)
    ]
    edges_K = torch.cat([book.edges, book.edges.new_tensor([torch.inf])])
    return _Bins(torch.minimum(*ends).to(device), edges_K.to(device), book.codes_K.to(device))


@kept()
def _values_on(book: Codebook, device: torch.device) -> Tensor:
    return book.values_K.to(device)


def codebook(name: str, values: tuple[float, ...] | Tensor) -> Codebook:
    """A codebook from its values by code."""
    values_K = torch.as_tensor(values, dtype=torch.float32)
    sorted_K, order_K = values_K.sort(stable=True)
    return Codebook(name, values_K, order_K.to(torch.uint8), (sorted_K[1:] + sorted_K[:-1]) / 2)


@kept()
def nf4() -> Codebook:
    """Sixteen values that normally distributed numbers use about equally often."""
    return codebook("nf4", _NF4)


@kept()
def fp4() -> Codebook:
    """Sixteen values, of which 0 and −0 are two codes for one."""
    return codebook("fp4", _signed(torch.tensor(_FP4_TWELFTHS) / 12))


@kept()
def e2m1() -> Codebook:
    """Sixteen values up to ±6, of which 0 and −0 are two codes for one."""
    return codebook("e2m1", _signed(torch.tensor(_E2M1)))


@kept()
def dynamic_map(signed: bool = True) -> Codebook:
    """256 values in [−1, 1], or without a sign in [0, 1], the denser the smaller: relative errors stay alike over seven decades."""
    values = [torch.tensor([0.0, 1.0])]
    for decade in range(_DECADES):
        count = 2**decade if signed else 2 ** (decade + 1)
        borders = torch.linspace(0.1, 1, count + 1)
        middles = (borders[:-1] + borders[1:]) / 2 * 10.0 ** (decade - _DECADES + 1)
        values += [middles, -middles] if signed else [middles]
    return codebook("dynamic" if signed else "dynamic-unsigned", torch.cat(values).sort().values)


def _signed(values: Tensor) -> Tensor:
    """The values and, behind them, their negatives: the sign is the highest bit of the code."""
    return torch.cat([values, -values])
