"""Dropout keyed by token: the plain formula a few tokens after the others, and the same mask on the way back."""

from __future__ import annotations

import pytest
import torch

from luthier.ops.draws import keep_mask, token_keys
from luthier.ops.dropout import Dropout


def dropout_of(tokens: int, drop: float) -> Dropout:
    return Dropout(token_keys(1, 2, torch.zeros(tokens, dtype=torch.int64), torch.arange(tokens)), salt=5, drop=drop)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("tokens", [0, 1, 255, 256, 257, 700])
def test_it_is_the_plain_formula_bit_by_bit(tokens: int, dtype: torch.dtype) -> None:
    x_NI, dropout = torch.randn(tokens, 9).to(dtype), dropout_of(tokens, 0.3)
    found = dropout(x_NI)
    assert found.dtype == dtype
    assert torch.equal(found, dropout.reference(x_NI))
    across = torch.randn(9, tokens).to(dtype).t()
    assert torch.equal(dropout(across), dropout.reference(across))


def test_what_stays_is_raised_and_what_is_dropped_is_zero() -> None:
    x_NI, dropout = torch.rand(300, 40) + 1, dropout_of(300, 0.25)
    keep_NI = keep_mask(dropout.keys_N, dropout.salt, 40, 0.25)
    found = dropout(x_NI)
    assert torch.allclose(found[keep_NI], x_NI[keep_NI] / 0.75)
    assert not found[~keep_NI].any()


def test_gradients_go_through_the_same_mask() -> None:
    x_NI, dropout = torch.randn(300, 6, dtype=torch.float64, requires_grad=True), dropout_of(300, 0.4)
    dy_NI = torch.randn(300, 6, dtype=torch.float64)
    (found,) = torch.autograd.grad(dropout(x_NI), x_NI, dy_NI)
    (wanted,) = torch.autograd.grad(dropout.reference(x_NI), x_NI, dy_NI)
    assert torch.equal(found, wanted)
    assert torch.equal(found, dropout(dy_NI))


def test_not_a_number_that_is_dropped_is_gone() -> None:
    x_NI, dropout = torch.full((50, 8), float("nan")), dropout_of(50, 0.5)
    keep_NI = keep_mask(dropout.keys_N, dropout.salt, 8, 0.5)
    assert torch.equal(dropout(x_NI).isnan(), keep_NI)
