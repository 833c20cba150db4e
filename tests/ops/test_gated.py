"""The fast gated product against its plain form."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from near import assert_all_near, assert_near
from torch import Tensor

from luthier.ops.gated import Activation, gated_product, gated_product_reference

ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)


def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Gate, up, and the gradient that comes back from above."""
    torch.manual_seed(sum(shape))
    gate, up = ((torch.randn(shape) * 3).to(dtype).requires_grad_() for _ in range(2))
    return gate, up, torch.randn(shape).to(dtype)


@settings(max_examples=25, deadline=None)
@given(shape=st.lists(st.integers(1, 7), min_size=1, max_size=3), activation=st.sampled_from(ACTIVATIONS))
def test_the_fast_product_equals_the_plain_one_in_value_and_gradients(shape: list[int], activation: Activation) -> None:
    gate, up, dh = inputs(tuple(shape), torch.float32)
    fast, plain = gated_product(gate, up, activation), gated_product_reference(gate, up, activation)
    assert_near(fast, plain)
    assert_all_near(torch.autograd.grad(fast, (gate, up), dh), torch.autograd.grad(plain, (gate, up), dh))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_its_gradients_are_the_slopes_of_its_value(activation: Activation) -> None:
    gate, up, _ = inputs((3, 5), torch.float64)
    assert torch.autograd.gradcheck(lambda g, u: gated_product(g, u, activation), (gate, up))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bf16_inputs_give_what_the_reference_gives_up_to_their_rounding(activation: Activation) -> None:
    gate, up, dh = inputs((5, 32), torch.bfloat16)
    fast, plain = gated_product(gate, up, activation), gated_product_reference(gate, up, activation)
    assert fast.dtype == torch.bfloat16
    assert_near(fast, plain, 2**-7)
    assert_all_near(torch.autograd.grad(fast, (gate, up), dh), torch.autograd.grad(plain, (gate, up), dh), 2**-6)


def test_neither_input_is_written_over_and_the_backward_pass_can_be_repeated() -> None:
    gate, up, dh = inputs((4, 4), torch.float32)
    before = gate.detach().clone(), up.detach().clone(), dh.clone()
    h = gated_product(gate, up, "silu")
    first = torch.autograd.grad(h, (gate, up), dh, retain_graph=True)
    second = torch.autograd.grad(h, (gate, up), dh)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(before, (gate, up, dh), strict=True))


def test_a_frozen_input_gets_no_gradient() -> None:
    gate, up, dh = inputs((4, 4), torch.float32)
    up.requires_grad_(False)
    (gradient,) = torch.autograd.grad(gated_product(gate, up, "gelu"), (gate,), dh)
    (expected,) = torch.autograd.grad(gated_product_reference(gate, up, "gelu"), (gate,), dh)
    assert_near(gradient, expected)
