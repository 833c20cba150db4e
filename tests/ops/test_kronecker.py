"""The product with a Kronecker product that is not built, against the one that is."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from near import assert_all_near, assert_near

from luthier.ops.kronecker import kron_linear, kron_linear_reference

SIDE = st.integers(1, 6)


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(0, 5), p=SIDE, q=SIDE, r=SIDE, s=SIDE)
def test_it_equals_the_product_with_the_whole_matrix_in_value_and_gradients(
    tokens: int, p: int, q: int, r: int, s: int
) -> None:
    torch.manual_seed(tokens + 7 * p + 11 * q + 13 * r + 17 * s)
    # in fp64: in fp32 sums that cancel leave rounding alone
    shapes = ((tokens, q * s), (p, q), (r, s))
    x, a, b = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    cheap, whole = kron_linear(x, a, b), kron_linear_reference(x, a, b)
    assert_near(cheap, whole, 1e-12)
    dy = torch.randn(tokens, p * r, dtype=torch.float64)
    gradients = [torch.autograd.grad(y, (x, a, b), dy) for y in (cheap, whole)]
    assert_all_near(*gradients, 1e-10)


def test_the_outer_factor_comes_first() -> None:
    torch.manual_seed(0)
    x, a, b = torch.randn(3, 6), torch.randn(4, 2), torch.randn(5, 3)
    entry = sum(x[1, q * 3 + s] * a[2, q] * b[4, s] for q in range(2) for s in range(3))
    assert_near(kron_linear(x, a, b)[1, 2 * 5 + 4], torch.as_tensor(entry))


def test_fp32_factors_serve_a_half_precision_input_and_get_fp32_gradients() -> None:
    x = torch.randn(3, 6).to(torch.bfloat16)
    a, b = torch.randn(4, 2, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    y = kron_linear(x, a, b)
    assert y.dtype == torch.bfloat16
    assert all(grad.dtype == torch.float32 for grad in torch.autograd.grad(y.float().sum(), (a, b)))
