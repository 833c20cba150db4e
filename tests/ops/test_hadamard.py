"""The product with an entrywise product of low-rank matrices against its plain form, and what it keeps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from near import assert_all_near, assert_near
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from luthier.ops.hadamard import Factors, hadamard_linear, hadamard_linear_reference, hadamard_product


def factors_of(outputs: int, inputs: int, rank: int, dtype: torch.dtype = torch.float32) -> Factors:
    """Random factors that want gradients."""
    shapes = ((outputs, rank), (rank, inputs), (outputs, rank), (rank, inputs))
    b1, a1, b2, a2 = (torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)
    return b1, a1, b2, a2


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(0, 6), inputs=st.integers(1, 12), outputs=st.integers(1, 12), rank=st.integers(1, 4))
def test_the_fast_product_equals_the_plain_one_in_value_and_gradients(
    tokens: int, inputs: int, outputs: int, rank: int
) -> None:
    torch.manual_seed(tokens + 7 * inputs + 31 * outputs + rank)
    x = torch.randn(tokens, inputs, dtype=torch.float64, requires_grad=True)
    factors = factors_of(outputs, inputs, rank, torch.float64)  # in fp32 sums that cancel leave rounding alone
    fast, plain = hadamard_linear(x, factors, 0.7), hadamard_linear_reference(x, factors, 0.7)
    assert_near(fast, plain, 1e-12)
    dy = torch.randn(tokens, outputs, dtype=torch.float64)
    gradients = [torch.autograd.grad(y, (x, *factors), dy) for y in (fast, plain)]
    assert_all_near(*gradients, 1e-10)


def test_in_single_precision_too() -> None:
    torch.manual_seed(5)
    x, factors = torch.randn(50, 24, requires_grad=True), factors_of(20, 24, 3)
    fast, plain = hadamard_linear(x, factors, 0.7), hadamard_linear_reference(x, factors, 0.7)
    assert_near(fast, plain)
    dy = torch.randn(50, 20)
    assert_all_near(torch.autograd.grad(fast, (x, *factors), dy), torch.autograd.grad(plain, (x, *factors), dy))


def test_the_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    x, factors = torch.randn(4, 5, dtype=torch.float64, requires_grad=True), factors_of(3, 5, 2, torch.float64)
    assert torch.autograd.gradcheck(lambda x, *factors: hadamard_linear(x, factors, 1.3), (x, *factors))


def test_only_the_input_and_the_factors_are_kept() -> None:
    kept: list[tuple[int, ...]] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    x, factors = torch.randn(4, 10, requires_grad=True), factors_of(7, 10, 2)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        hadamard_linear(x, factors, 1.0)
    assert sorted(kept) == sorted([(4, 10), (7, 2), (2, 10), (7, 2), (2, 10)])


def test_half_precision_inputs_come_near_and_the_factors_get_fp32_gradients() -> None:
    torch.manual_seed(1)
    x, factors = torch.randn(6, 9).to(torch.bfloat16), factors_of(8, 9, 3)
    y = hadamard_linear(x, factors, 0.5)
    assert y.dtype == torch.bfloat16
    assert_near(y.float(), hadamard_linear_reference(x.float(), factors, 0.5), 2e-2)
    assert all(grad.dtype == torch.float32 for grad in torch.autograd.grad(y.float().sum(), factors))


@pytest.mark.parametrize("rank", [2, 3])
def test_the_rank_reaches_the_square_of_that_of_the_factors(rank: int) -> None:
    torch.manual_seed(rank)
    product = hadamard_product(factors_of(20, 24, rank, torch.float64))
    assert int(torch.linalg.matrix_rank(product)) == rank**2
