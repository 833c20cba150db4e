"""The fast RMSNorm against its plain form, and both against the formula in double precision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from near import assert_all_near, assert_near
from torch import Tensor

from luthier.ops.norm import rms_norm, rms_norm_reference

EPS = 1e-5


def in_double(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The formula as the paper has it."""
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """An input, a gain, and the gradient that comes back from above."""
    torch.manual_seed(sum(shape))
    x = (torch.randn(shape) * 3).to(dtype).requires_grad_()
    weight = (torch.rand(shape[-1]) + 0.5).to(dtype).requires_grad_()
    return x, weight, torch.randn(shape).to(dtype)


@settings(max_examples=20, deadline=None)
@given(rows=st.lists(st.integers(1, 5), min_size=1, max_size=3), width=st.integers(1, 33))
def test_the_fast_norm_is_the_formula_in_value_and_in_both_gradients(rows: list[int], width: int) -> None:
    x, weight, dy = inputs((*rows, width))
    wide_x, wide_weight = (t.detach().double().requires_grad_() for t in (x, weight))
    expected = in_double(wide_x, wide_weight, EPS)
    for norm in (rms_norm, rms_norm_reference):
        y = norm(x, weight, EPS)
        assert_near(y, expected.float(), 1e-6)
        gradients = torch.autograd.grad(y, (x, weight), dy)
        wide = torch.autograd.grad(expected, (wide_x, wide_weight), dy.double(), retain_graph=True)
        # a width of 1 leaves almost no gradient in x: compare with the terms that cancel
        scale = float(dy.abs().max() * weight.detach().abs().max() / x.detach().square().mean(-1).add(EPS).sqrt().min())
        assert float((gradients[0] - wide[0].float()).abs().max()) <= 1e-5 * scale
        assert_near(gradients[1], wide[1].float(), 1e-5)


def test_bf16_inputs_give_what_the_reference_gives_up_to_their_rounding() -> None:
    x, weight, dy = inputs((7, 64), torch.bfloat16)
    fast, plain = rms_norm(x, weight, EPS), rms_norm_reference(x, weight, EPS)
    assert fast.dtype == torch.bfloat16
    assert_near(fast, plain, 2**-8)
    gradients = [torch.autograd.grad(y, (x, weight), dy) for y in (fast, plain)]
    assert [g.dtype for g in gradients[0]] == [torch.bfloat16, torch.bfloat16]
    assert_all_near(gradients[0], gradients[1], 2**-6)


@pytest.mark.parametrize("trained", ["input", "gain"])
def test_only_the_gradient_that_is_asked_for_is_computed(trained: str) -> None:
    x, weight, dy = inputs((4, 8))
    (x if trained == "gain" else weight).requires_grad_(False)
    wanted = weight if trained == "gain" else x
    both = inputs((4, 8))
    full = dict(zip(("input", "gain"), torch.autograd.grad(rms_norm(both[0], both[1], EPS), both[:2], dy), strict=True))
    (gradient,) = torch.autograd.grad(rms_norm(x, weight, EPS), (wanted,), dy)
    assert torch.equal(gradient, full[trained])


def test_a_row_of_zeros_stays_zero_and_its_gradient_finite() -> None:
    x = torch.zeros(2, 4, requires_grad=True)
    y = rms_norm(x, torch.ones(4), EPS)
    assert torch.equal(y, torch.zeros(2, 4))
    (gradient,) = torch.autograd.grad(y, x, torch.ones(2, 4))
    assert_near(gradient, torch.full((2, 4), EPS**-0.5), 1e-5)
