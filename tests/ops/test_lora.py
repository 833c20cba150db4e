"""The fast LoRA layer against its plain form."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from near import assert_all_near, assert_near
from torch import Tensor

from luthier.ops.draws import token_keys
from luthier.ops.dropout import Dropout
from luthier.ops.lora import Update, lora_linear, lora_linear_reference, updated_linear


@dataclass(frozen=True)
class Layer:
    """One layer's tensors and the gradient that comes back from above."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    a: Tensor
    b: Tensor
    dy: Tensor

    def both(self, scale: float, dropout: Dropout | None) -> tuple[Tensor, Tensor]:
        """The fast result and the plain one."""
        terms = (self.x, self.weight, self.bias, self.a, self.b, scale, dropout)
        return lora_linear(*terms), lora_linear_reference(*terms)


def layer_of(
    tokens: int, inputs: int, outputs: int, rank: int, *, bias: bool = True, dtype: torch.dtype = torch.float32
) -> Layer:
    """A random layer; A and B are fp32 unless everything is double."""
    torch.manual_seed(tokens + 7 * inputs + 31 * outputs + rank)
    low = torch.float64 if dtype == torch.float64 else torch.float32
    return Layer(
        x=torch.randn(tokens, inputs).to(dtype).requires_grad_(),
        weight=torch.randn(outputs, inputs).to(dtype),
        bias=torch.randn(outputs).to(dtype) if bias else None,
        a=torch.randn(rank, inputs, dtype=low).requires_grad_(),
        b=torch.randn(outputs, rank, dtype=low).requires_grad_(),
        dy=torch.randn(tokens, outputs).to(dtype),
    )


def dropout_of(tokens: int, drop: float) -> Dropout | None:
    """Dropout keyed as for one document."""
    if drop == 0:
        return None
    keys = token_keys(3, 5, torch.zeros(tokens, dtype=torch.int64), torch.arange(tokens))
    return Dropout(keys, salt=11, drop=drop)


@settings(max_examples=30, deadline=None)
@given(
    tokens=st.integers(0, 9),
    inputs=st.integers(1, 17),
    outputs=st.integers(1, 17),
    rank=st.integers(1, 5),
    bias=st.booleans(),
    drop=st.sampled_from([0.0, 0.4]),
    transposed=st.booleans(),
)
def test_the_fast_layer_equals_the_plain_one_in_value_and_gradients(
    tokens: int, inputs: int, outputs: int, rank: int, bias: bool, drop: float, transposed: bool
) -> None:
    layer = layer_of(tokens, inputs, outputs, rank, bias=bias)
    if transposed:  # as Conv1D keeps it
        layer = Layer(layer.x, layer.weight.t().contiguous().t(), layer.bias, layer.a, layer.b, layer.dy)
    fast, plain = layer.both(0.7, dropout_of(tokens, drop))
    assert_near(fast, plain)
    wanted = (layer.x, layer.a, layer.b)
    assert_all_near(torch.autograd.grad(fast, wanted, layer.dy), torch.autograd.grad(plain, wanted, layer.dy))


@pytest.mark.parametrize("drop", [0.0, 0.3])
def test_its_gradients_are_the_slopes_of_its_value(drop: float) -> None:
    layer = layer_of(4, 6, 5, 2, dtype=torch.float64)
    dropout = dropout_of(4, drop)
    assert torch.autograd.gradcheck(
        lambda x, a, b: lora_linear(x, layer.weight, layer.bias, a, b, 0.7, dropout), (layer.x, layer.a, layer.b)
    )


def test_over_a_bf16_base_the_branch_is_computed_in_bf16_and_its_gradients_come_back_in_fp32() -> None:
    layer = layer_of(8, 32, 16, 4, dtype=torch.bfloat16)
    fast, plain = layer.both(0.5, None)
    assert fast.dtype == torch.bfloat16
    assert_near(fast, plain, 2**-6)
    wanted = (layer.x, layer.a, layer.b)
    gradients = torch.autograd.grad(fast, wanted, layer.dy)
    assert [g.dtype for g in gradients] == [torch.bfloat16, torch.float32, torch.float32]
    assert_all_near(gradients, torch.autograd.grad(plain, wanted, layer.dy), 2**-5)


def test_with_b_at_zero_the_layer_is_the_frozen_layer_bit_for_bit() -> None:
    layer = layer_of(5, 8, 8, 4)
    b = torch.zeros_like(layer.b)
    frozen = lora_linear(layer.x, layer.weight, layer.bias, torch.zeros_like(layer.a), b, 1.0, None)
    assert torch.equal(lora_linear(layer.x, layer.weight, layer.bias, layer.a, b, 1.0, None), frozen)


def test_dropped_inputs_neither_reach_the_branch_nor_get_its_gradient() -> None:
    layer = layer_of(6, 8, 8, 4, bias=False)
    dropout = dropout_of(6, 0.5)
    assert dropout is not None
    kept = dropout(torch.ones(6, 8))
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    y = lora_linear(layer.x, torch.zeros(8, 8), None, layer.a, layer.b, 1.0, dropout)
    assert_near(y, (layer.x * kept) @ layer.a.t() @ layer.b.t())
    (dx,) = torch.autograd.grad(y, layer.x, layer.dy)
    assert bool((dx[kept == 0] == 0).all())


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    whose=st.lists(st.sampled_from([None, 0, 1]), min_size=4, max_size=4),
    rank=st.integers(0, 3),
    drop=st.sampled_from([0.0, 0.4]),
)
def test_updates_of_different_tokens_equal_the_layer_of_each_alone(
    lengths: list[int], whose: list[int | None], rank: int, drop: float
) -> None:
    layer, other = layer_of(sum(lengths), 5, 7, rank), layer_of(sum(lengths) + 1, 5, 7, rank)
    pairs = ((layer.a, layer.b), (other.a, other.b))
    keys = token_keys(3, 5, torch.zeros(sum(lengths), dtype=torch.int64), torch.arange(sum(lengths)))
    updates, alone, start = [], [], 0
    for length, index in zip(lengths, whose, strict=False):
        stop = start + length
        x = layer.x[start:stop]
        if index is None:
            alone.append(torch.nn.functional.linear(x, layer.weight, layer.bias))
        else:
            dropout = Dropout(keys[start:stop], salt=11, drop=drop) if drop else None
            updates.append(Update(start, stop, *pairs[index], 0.7, dropout))
            alone.append(lora_linear_reference(x, layer.weight, layer.bias, *pairs[index], 0.7, dropout))
        start = stop
    together = updated_linear(layer.x, layer.weight, layer.bias, updates)
    assert_near(together, torch.cat(alone))
    used = [tensor for update in updates for tensor in (update.a_RI, update.b_OR)]
    wanted = (layer.x, *dict.fromkeys(used))
    assert_all_near(
        torch.autograd.grad(together, wanted, layer.dy), torch.autograd.grad(torch.cat(alone), wanted, layer.dy)
    )
