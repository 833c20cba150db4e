"""The product with a sum of Kronecker products: the cheap form against the built matrix."""

from __future__ import annotations

import pytest
import torch
from near import assert_all_near, assert_near

from luthier.ops.hypercomplex import kronecker_product, kronecker_product_reference


def factors(blocks: int, inputs: int, outputs: int, rank: int) -> list[torch.Tensor]:
    """x, A, S and T, random."""
    shapes = [(6, inputs), (blocks,) * 3, (blocks, inputs // blocks, rank), (blocks, rank, outputs // blocks)]
    draws = [torch.randn(s, generator=torch.Generator().manual_seed(i)) for i, s in enumerate(shapes)]
    return [draw.requires_grad_(True) for draw in draws]


@pytest.mark.parametrize("shape", [(1, 5, 3, 2), (2, 6, 10, 1), (3, 9, 6, 2), (4, 8, 20, 3)])
def test_both_forms_agree_in_value_and_every_gradient(shape: tuple[int, int, int, int]) -> None:
    inputs = factors(*shape)
    results = []
    for product in (kronecker_product, kronecker_product_reference):
        y = product(*inputs)
        assert y.shape == (6, shape[2])
        weights = torch.arange(y.numel()).view_as(y) / y.numel()
        results.append([y, *torch.autograd.grad((y * weights).sum(), inputs)])
    assert_all_near(*results)


def test_an_entry_of_the_matrix_is_the_sum_of_products_of_entries() -> None:
    _, rule, left, right = factors(2, 6, 4, 1)
    matrix = kronecker_product(torch.eye(6), rule, left, right)
    row, column = (1, 2), (0, 1)  # block and place within it
    expected = sum(rule[k, row[0], column[0]] * left[k, row[1], 0] * right[k, 0, column[1]] for k in range(2))
    assert_near(matrix[row[0] * 3 + row[1], column[0] * 2 + column[1]], torch.as_tensor(expected))


def test_half_precision_inputs_give_half_precision_outputs() -> None:
    x, rule, left, right = factors(2, 6, 4, 1)
    half = kronecker_product(x.bfloat16(), rule, left, right)
    assert half.dtype == torch.bfloat16
    assert_near(half.float(), kronecker_product(x, rule, left, right), 0.03)
