"""The chosen matrix product against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from near import assert_near

from luthier.ops.products import frozen_linear, linear


@pytest.mark.parametrize("tokens", [0, 1, 7])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_product_is_that_of_torch(tokens: int, bias: bool, transposed: bool) -> None:
    torch.manual_seed(tokens)
    x = torch.randn(tokens, 12)
    weight = torch.randn(12, 20).t() if transposed else torch.randn(20, 12)
    offset = torch.randn(20) if bias else None
    assert_near(linear(x, weight, offset), F.linear(x, weight, offset))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_number_formats_keep_theirs(dtype: torch.dtype) -> None:
    x, weight = torch.randn(3, 4).to(dtype), torch.randn(5, 4).to(dtype)
    assert torch.equal(linear(x, weight), F.linear(x, weight))


def test_a_slice_of_a_wider_tensor_is_multiplied_as_it_is() -> None:
    wide = torch.randn(6, 30)
    weight = torch.randn(8, 10)
    assert_near(linear(wide[:, 10:20], weight), wide[:, 10:20] @ weight.t())


@pytest.mark.parametrize("bias", [False, True])
def test_the_product_with_a_frozen_weight_hands_gradients_on_and_keeps_the_weight_alone(bias: bool) -> None:
    x = torch.randn(2, 3, 12, requires_grad=True)
    weight = torch.randn(20, 12)
    offset = torch.randn(20) if bias else None
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        y = frozen_linear(x, weight, offset)
    assert [tensor.data_ptr() for tensor in kept] == [weight.data_ptr()]
    expected = F.linear(x, weight, offset)
    assert_near(y, expected)
    direction = torch.randn_like(y)
    assert_near(*(torch.autograd.grad(out, x, direction)[0] for out in (y, expected)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bias_that_trains_beside_a_frozen_weight_gets_its_gradient_in_its_own_format(dtype: torch.dtype) -> None:
    x, weight = torch.randn(2, 3, 12).to(dtype), torch.randn(20, 12).to(dtype)
    offset = torch.randn(20, requires_grad=True)
    y = frozen_linear(x, weight, offset)
    assert y.dtype == dtype
    direction = torch.randn(2, 3, 20).to(dtype)
    (found,) = torch.autograd.grad(y, [offset], direction)
    assert found.dtype == torch.float32
    assert_near(found, direction.double().sum((0, 1)), 1e-6)
