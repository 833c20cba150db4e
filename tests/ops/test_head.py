"""The chunked head against all logits at once, and against double precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from near import assert_near
from torch import Tensor

from luthier.ops import head
from luthier.ops.head import token_logprobs, token_logprobs_recomputed, token_logprobs_reference

WIDTH, VOCABULARY = 16, 50


def inputs(positions: int, *, bias: bool = False, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Hidden states, tokens, the head's weight and bias, and the gradient that comes back from above."""
    torch.manual_seed(positions + 1)
    hidden = torch.randn(positions, WIDTH).to(dtype).requires_grad_()
    tokens = torch.randint(VOCABULARY, (positions,))
    weight = torch.randn(VOCABULARY, WIDTH).to(dtype)
    offset = torch.randn(VOCABULARY).to(dtype) if bias else None
    return hidden, tokens, weight, offset, torch.randn(positions)  # type: ignore[return-value]


def logits_by(weight: Tensor, bias: Tensor | None, softcap: float | None) -> head.LogitsOf:
    """The head as a function."""

    def logits_of(hidden: Tensor, start: int) -> Tensor:
        logits = F.linear(hidden, weight, bias)
        return logits if softcap is None else torch.tanh(logits / softcap) * softcap

    return logits_of


@settings(max_examples=25, deadline=None)
@given(
    positions=st.sampled_from([0, 1, 5, 127, 128, 129, 256, 300]),
    bias=st.booleans(),
    softcap=st.sampled_from([None, 3.0]),
)
def test_every_way_gives_the_log_probabilities_and_gradients_of_double_precision(
    positions: int, bias: bool, softcap: float | None
) -> None:
    hidden, tokens, weight, offset, dy = inputs(positions, bias=bias)
    wide_hidden = hidden.detach().double().requires_grad_()
    wide_logits = logits_by(weight.double(), None if offset is None else offset.double(), softcap)(wide_hidden, 0)
    expected = wide_logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    (wide_gradient,) = torch.autograd.grad(expected, wide_hidden, dy.double())
    logits_of = logits_by(weight, offset, softcap)
    for logprobs in (
        token_logprobs(hidden, tokens, weight, offset, softcap),
        token_logprobs_recomputed(hidden, tokens, logits_of),
        token_logprobs_reference(hidden, tokens, logits_of),
    ):
        assert logprobs.dtype == torch.float32
        assert_near(logprobs, expected, 2e-6)
        (gradient,) = torch.autograd.grad(logprobs, hidden, dy)
        assert_near(gradient, wide_gradient, 1e-5)


def test_a_trained_head_gets_the_gradient_that_plain_autograd_gives_it() -> None:
    hidden, tokens, weight, _, dy = inputs(200)
    weight.requires_grad_()
    logits_of = logits_by(weight, None, None)
    gradients = [
        torch.autograd.grad(logprobs, (hidden, weight), dy)
        for logprobs in (
            token_logprobs_recomputed(hidden, tokens, logits_of),
            token_logprobs_reference(hidden, tokens, logits_of),
        )
    ]
    for one, other in zip(*gradients, strict=True):
        assert_near(one, other)


def test_each_chunk_is_told_where_it_begins() -> None:
    hidden, tokens, weight, _, _ = inputs(300)
    seen: list[tuple[int, int]] = []

    def logits_of(chunk: Tensor, start: int) -> Tensor:
        assert torch.equal(chunk, hidden[start : start + len(chunk)])
        seen.append((start, len(chunk)))
        return F.linear(chunk, weight)

    token_logprobs_recomputed(hidden, tokens, logits_of)
    assert seen == [(0, 128), (128, 128), (256, 44)]


def test_no_more_than_one_chunk_of_logits_is_ever_computed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, tokens, weight, _, _ = inputs(40)
    whole = token_logprobs(hidden, tokens, weight, None, None)
    monkeypatch.setattr(head, "CHUNK", 7)
    rows: list[int] = []
    plain = head.linear

    def watched(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        if x.shape[-1] == WIDTH:  # the logits, not their gradient
            rows.append(len(x))
        return plain(x, w, b)

    monkeypatch.setattr(head, "linear", watched)
    assert_near(token_logprobs(hidden, tokens, weight, None, None), whole)
    assert rows == [7, 7, 7, 7, 7, 5]


def test_without_a_gradient_to_compute_the_values_are_the_same() -> None:
    hidden, tokens, weight, _, _ = inputs(150)
    with torch.no_grad():
        assert_near(
            token_logprobs(hidden, tokens, weight, None, None),
            token_logprobs_reference(hidden, tokens, logits_by(weight, None, None)),
        )


def test_a_token_that_is_certain_or_all_but_impossible_stays_finite() -> None:
    hidden = torch.tensor([[400.0], [400.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [0.0], [-1.0]])
    logprobs = token_logprobs(hidden, torch.tensor([0, 2]), weight, None, None)
    assert_near(logprobs, torch.tensor([0.0, -800.0]))
    (gradient,) = torch.autograd.grad(logprobs.sum(), hidden)
    assert_near(gradient, torch.tensor([[0.0], [-2.0]]))


def test_bf16_heads_give_what_the_reference_gives_up_to_their_rounding() -> None:
    hidden, tokens, weight, _, dy = inputs(140, dtype=torch.bfloat16)
    fast = token_logprobs(hidden, tokens, weight, None, None)
    plain = token_logprobs_reference(hidden, tokens, logits_by(weight, None, None))
    assert fast.dtype == torch.float32
    assert_near(fast, plain, 1e-5)
    (gradient,) = torch.autograd.grad(fast, hidden, dy)
    assert gradient.dtype == torch.bfloat16
    assert_near(gradient, torch.autograd.grad(plain, hidden, dy)[0], 2**-5)
