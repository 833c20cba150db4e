"""The numbers that codes stand for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from luthier.quantization.codebooks import Codebook, dynamic_map, e2m1, fp4, nf4

BOOKS = [nf4(), fp4(), e2m1(), dynamic_map(), dynamic_map(signed=False)]


def quantile(p: float) -> float:
    """The inverse of the normal distribution's cumulative function."""
    return math.sqrt(2) * float(torch.erfinv(torch.tensor(2 * p - 1, dtype=torch.float64)))


def test_nf4_is_what_the_quantiles_of_a_normal_distribution_give_up_to_the_last_bits() -> None:
    offset = 1 - (1 / 32 + 1 / 30) / 2
    above = [quantile(p) for p in torch.linspace(offset, 0.5, 9, dtype=torch.float64)[:-1].tolist()]
    below = [-quantile(p) for p in torch.linspace(offset, 0.5, 8, dtype=torch.float64)[:-1].tolist()]
    derived = torch.tensor(sorted([*above, 0.0, *below]), dtype=torch.float64) / max(above)
    assert (nf4().values_K.double() - derived).abs().max() < 2e-7
    assert nf4().values_K[7] == 0
    assert (nf4().values_K[0], nf4().values_K[-1]) == (-1, 1)


def test_fp4_is_three_bits_and_a_sign_in_an_order_of_its_own() -> None:
    assert (fp4().values_K[:8] * 12).tolist() == pytest.approx([0, 0.0625, 8, 12, 4, 6, 2, 3])
    assert torch.equal(fp4().values_K[8:], -fp4().values_K[:8])
    assert fp4().codes_K.tolist() == [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3]


def test_e2m1_is_a_float_of_two_exponent_bits_and_one_fraction_bit() -> None:
    for code in range(8):
        exponent, fraction = code >> 1, code & 1
        value = fraction / 2 if exponent == 0 else (1 + fraction / 2) * 2 ** (exponent - 1)
        assert e2m1().values_K[code] == value
        assert e2m1().values_K[code + 8] == -value


def test_the_dynamic_map_has_twice_as_many_numbers_in_each_decade() -> None:
    values = dynamic_map().values_K
    assert len(values) == len(values.unique()) == 256
    assert (values[127], values[-1]) == (0, 1)
    assert values[0] == pytest.approx(-0.99297, abs=1e-5)
    assert values[values > 0].min() == pytest.approx(5.5e-7)
    for decade in range(7):
        in_it = (values.abs() > 10.0 ** (decade - 7)) & (values.abs() < 10.0 ** (decade - 6))
        assert int(in_it.sum()) == 2 * 2**decade
    unsigned = dynamic_map(signed=False).values_K
    assert len(unsigned.unique()) == 256
    assert (unsigned[0], unsigned[-1]) == (0, 1)


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.name)
def test_the_nearest_code_is_the_nearest(book: Codebook) -> None:
    x = torch.cat([torch.linspace(-1.2, 1.2, 20_001), torch.randn(2000, generator=torch.Generator().manual_seed(1))])
    chosen = book.values_K[book.nearest(x).long()]
    best = (x.double()[:, None] - book.values_K.double()).abs().amin(1)
    assert torch.allclose((x.double() - chosen.double()).abs(), best, atol=6e-8)


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.name)
def test_the_fast_path_gives_the_code_that_a_search_gives(book: Codebook) -> None:
    near_edges = [book.edges, book.edges.nextafter(torch.tensor(9.0)), book.edges.nextafter(torch.tensor(-9.0))]
    every_first_half = torch.arange(-(2**15), 2**15, dtype=torch.int32) << 16
    first_halves = [(every_first_half | rest).view(torch.float32) for rest in (0, 1, 0x7FFF, 0xFFFF)]
    x = torch.cat([*near_edges, *first_halves, torch.zeros(1), -torch.zeros(1)])
    x = x[x.isfinite()]
    assert torch.equal(book.nearest(x), book.nearest_reference(x))
    assert torch.equal(book.nearest(x[::3]), book.nearest_reference(x[::3].contiguous()))


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.name)
def test_a_number_between_two_codes_becomes_the_lesser_one_and_a_code_itself_stays(book: Codebook) -> None:
    in_order = book.values_K[book.codes_K.long()]
    assert torch.equal(book.values_K[book.nearest(book.edges).long()], in_order[:-1])
    assert torch.equal(book.values_K[book.nearest(in_order).long()], in_order)


def test_borders_between_codes_are_their_midpoints_in_fp32() -> None:
    values: Tensor = nf4().values_K
    assert torch.equal(nf4().edges, (values[1:] + values[:-1]) / 2)
    assert nf4().edges.dtype == torch.float32
