"""The spectrum of an update: the same by way of the factors, and the best approximation of each rank."""

from __future__ import annotations

import math

import pytest
import torch
from near import assert_near

from luthier.ops.spectrum import Factors, effective_rank, energy_by_rank, rank_for, svd_of


def product(rank: int = 5) -> Factors:
    """A random matrix (11, 7) of a rank, as a product."""
    draw = torch.Generator().manual_seed(rank)
    return Factors(torch.randn(11, rank, generator=draw), torch.randn(rank, 7, generator=draw))


@pytest.mark.parametrize("rank", [1, 5, 9])
def test_by_way_of_the_factors_the_decomposition_is_that_of_the_product(rank: int) -> None:
    by_factors, dense = svd_of(product(rank)), svd_of(product(rank).dense())
    count = min(rank, 7)
    assert_near(by_factors.sigma_K[:count], dense.sigma_K[:count])
    assert_near(by_factors.u_OK @ (by_factors.sigma_K[:, None] * by_factors.vt_KI), product(rank).dense())


def test_the_best_matrix_of_a_rank_loses_exactly_the_energy_of_the_values_left_out() -> None:
    svd = svd_of(product())
    for rank in range(1, 5):
        lost = (svd.best(rank).dense() - product().dense()).square().sum()
        assert_near(lost, svd.sigma_K[rank:].square().sum(), 1e-4)
    assert_near(svd.best(5).dense(), product().dense())


def test_no_random_matrix_of_the_rank_comes_nearer() -> None:
    svd, target = svd_of(product()), product().dense()
    best = float((svd.best(2).dense() - target).norm())
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        factors = svd.best(2)
        moved = (factors.left_OR + 0.05 * torch.randn(11, 2, generator=draw)) @ factors.right_RI
        assert float((moved - target).norm()) > best


def test_the_effective_rank_counts_equal_values_and_is_one_for_a_single_one() -> None:
    assert effective_rank(torch.full((4,), 3.0)) == pytest.approx(4)
    assert effective_rank(torch.tensor([2.0, 0.0, 0.0])) == pytest.approx(1)
    assert effective_rank(torch.zeros(3)) == 0
    two = effective_rank(torch.tensor([3.0, 1.0]))
    assert two == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))


def test_the_rank_for_an_energy_is_the_first_that_reaches_it() -> None:
    sigma_K = torch.tensor([3.0, 2.0, 1.0])  # energies 9, 4, 1 of 14
    assert_near(energy_by_rank(sigma_K), torch.tensor([9, 13, 14], dtype=torch.float64) / 14, 1e-12)
    assert [rank_for(sigma_K, energy) for energy in (0.1, 9 / 14, 0.65, 13 / 14, 0.95, 1.0)] == [1, 1, 2, 2, 3, 3]
    assert rank_for(torch.zeros(3), 0.99) == 1
