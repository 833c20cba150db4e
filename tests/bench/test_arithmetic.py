"""The counted arithmetic is what torch counts when the same products are computed."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.arithmetic import Arithmetic, arithmetic_of
from bench.work import NOT_LEARNED, Linear, Shape, WorkRow


def shape(*linears: Linear, layers: int = 0, attention_width: int = 0, hidden: int = 0, vocabulary: int = 0) -> Shape:
    return Shape(linears, rank=3, layers=layers, attention_width=attention_width, hidden=hidden, vocabulary=vocabulary)


def row(tokens: int, learned: int) -> WorkRow:
    return WorkRow([7] * tokens, [NOT_LEARNED] * (tokens - learned) + [7] * learned)


def counted(compute: object) -> int:
    with FlopCounterMode(display=False) as counter:
        compute()  # type: ignore[operator]
    return counter.get_total_flops()


def test_a_linear_with_lora_costs_what_torch_counts() -> None:
    def compute(needs_input_gradient: bool) -> None:
        x = torch.randn(11, 5, requires_grad=needs_input_gradient)
        weight, a, b = torch.randn(8, 5), torch.randn(3, 5, requires_grad=True), torch.randn(8, 3, requires_grad=True)
        (x @ weight.t() + x @ a.t() @ b.t()).sum().backward()

    for needs in (True, False):
        found = arithmetic_of(shape(Linear("a", 5, 8, needs)), [row(11, 4)])
        assert found.total == found.linears + found.lora == counted(lambda needs=needs: compute(needs))


def test_the_head_costs_what_torch_counts_at_learned_positions_alone() -> None:
    def compute() -> None:
        hidden = torch.randn(4, 6, requires_grad=True)
        (hidden @ torch.randn(10, 6).t()).sum().backward()

    found = arithmetic_of(shape(hidden=6, vocabulary=10), [row(11, 4)])
    assert found.total == found.head == counted(compute)


def test_causal_attention_counts_each_pair_once_within_each_row() -> None:
    found = arithmetic_of(shape(layers=2, attention_width=8), [row(3, 1), row(2, 1)])
    pairs = (1 + 2 + 3) + (1 + 2)
    assert found == Arithmetic(linears=0, lora=0, attention=2 * pairs * 6 * (2 * 8), head=0)
