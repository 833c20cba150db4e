"""Packed attention: the fast path, the dense reference, and every segment computed alone with its ancestors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from near import assert_all_near, assert_near
from torch import Tensor

from luthier.ops.attention import (
    AttentionTerms,
    masked_attention,
    narrowed,
    packed_attention,
    packed_attention_reference,
)
from luthier.ops.segments import ancestors, dense_mask, early_tokens, segment_positions
from luthier.types import Segment

WIDTH = 4


@dataclass(frozen=True)
class Row:
    """A packed row's queries, keys, values, and the gradient that comes back from above."""

    q: Tensor
    k: Tensor
    v: Tensor
    dy: Tensor


def row_of(tokens: int, heads: int, kv_heads: int, dtype: torch.dtype = torch.float32) -> Row:
    """A random row."""
    torch.manual_seed(tokens + 10 * heads + kv_heads)
    q = (torch.randn(1, heads, tokens, WIDTH) * 2).to(dtype).requires_grad_()
    k, v = ((torch.randn(1, kv_heads, tokens, WIDTH) * 2).to(dtype).requires_grad_() for _ in range(2))
    return Row(q, k, v, torch.randn(1, heads, tokens, WIDTH).to(dtype))


def tiled(
    lengths: list[int], parents: dict[int, int] | None = None, both_ways: set[int] = frozenset()
) -> list[Segment]:  # type: ignore[assignment]
    """Segments laid end to end."""
    segments = []
    start = 0
    for index, length in enumerate(lengths):
        segments.append(Segment(start, start + length, (parents or {}).get(index), index not in both_ways))
        start += length
    return segments


def sees(segments: list[Segment], query: int, key: int, window: int | None) -> bool:
    """Whether token `query` of the row sees token `key`, by the words of the docstring alone."""

    def home(token: int) -> int:
        return next(i for i, s in enumerate(segments) if s.start <= token < s.end)

    def position(token: int) -> int:
        segment = segments[home(token)]
        before = 0 if segment.parent is None else position(segments[segment.parent].end - 1) + 1
        return before + token - segment.start

    own, other = home(query), home(key)
    chain = [own]
    while (parent := segments[chain[-1]].parent) is not None:
        chain.append(parent)
    if other not in chain:
        return False
    if other == own and segments[own].causal and key > query:
        return False
    return window is None or position(key) > position(query) - window


def one_by_one(row: Row, segments: list[Segment], terms: AttentionTerms) -> Tensor:
    """Every query alone over the keys that it sees, in double precision, by the formula."""
    heads, kv_heads = row.q.shape[1], row.k.shape[1]
    outputs = []
    for query in range(row.q.shape[2]):
        keys = [key for key in range(row.q.shape[2]) if sees(segments, query, key, terms.window)]
        heads_out = []
        for h in range(heads):
            kv = h * kv_heads // heads
            score = row.k[0, kv, keys].double() @ row.q[0, h, query].double() * terms.scale
            if terms.softcap is not None:
                score = terms.softcap * torch.tanh(score / terms.softcap)
            mass = score.exp()
            total = mass.sum() + (0 if terms.sinks_H is None else terms.sinks_H[h].double().exp())
            heads_out.append(mass @ row.v[0, kv, keys].double() / total)
        outputs.append(torch.stack(heads_out))
    return torch.stack(outputs, dim=1)[None]


@st.composite
def rows_of_segments(draw: st.DrawFn) -> list[Segment]:
    """Up to five segments, each perhaps the child of an earlier one, perhaps seeing both ways."""
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    parents = {index: draw(st.integers(0, index - 1)) for index in range(1, len(lengths)) if draw(st.booleans())}
    both_ways = {index for index in range(len(lengths)) if draw(st.integers(0, 3)) == 0}
    return tiled(lengths, parents, both_ways)


@settings(max_examples=40, deadline=None)
@given(
    segments=rows_of_segments(),
    heads=st.sampled_from([(2, 2), (4, 2), (3, 1)]),
    window=st.sampled_from([None, 1, 3]),
    softcap=st.sampled_from([None, 2.0]),
    sinks=st.booleans(),
)
def test_packed_attention_is_each_query_over_what_it_sees_and_nothing_else(
    segments: list[Segment], heads: tuple[int, int], window: int | None, softcap: float | None, sinks: bool
) -> None:
    row = row_of(segments[-1].end, *heads)
    sinks_H = torch.linspace(-1, 1, heads[0]).requires_grad_() if sinks else None
    terms = AttentionTerms(1 / math.sqrt(WIDTH), window, softcap, sinks_H)
    fast = packed_attention(row.q, row.k, row.v, segments, terms)
    plain = packed_attention_reference(row.q, row.k, row.v, segments, terms)
    expected = one_by_one(row, segments, terms)
    assert_near(fast, expected)
    assert_near(plain, expected)
    wanted = (row.q, row.k, row.v) if sinks_H is None else (row.q, row.k, row.v, sinks_H)
    slopes = [torch.autograd.grad(y, wanted, row.dy.to(y.dtype)) for y in (fast, plain, expected)]
    for one in slopes[:2]:
        for gradient, exact, name in zip(one, slopes[2], "qkvs", strict=False):
            # where every query sees one key, q and k have no gradient at all: compare with the terms that cancel
            floor = 1e-5 * float(row.dy.abs().max()) if name in "qks" else 0.0
            worst = float((gradient - exact).abs().max())
            assert worst <= 1e-5 * float(exact.abs().max()) + floor


def test_the_dense_mask_is_what_the_words_say() -> None:
    segments = tiled([3, 2, 4, 2], {1: 0, 3: 1}, {0, 2})
    for window in (None, 1, 2, 4):
        mask = dense_mask(segments, 11, window, torch.device("cpu"))
        expected = [[sees(segments, q, k, window) for k in range(11)] for q in range(11)]
        assert mask.tolist() == expected


def test_ancestors_come_oldest_first_and_positions_go_on_from_the_parents_end() -> None:
    segments = tiled([3, 2, 4, 1, 5], {1: 0, 2: 0, 3: 2})
    assert ancestors(segments, 3) == [0, 2, 3]
    assert ancestors(segments, 4) == [4]
    assert segment_positions(segments) == [0, 3, 3, 7, 0]


def test_early_tokens_are_those_of_a_stretch_whose_positions_come_before() -> None:
    segments = tuple(tiled([3, 2, 4, 1, 5], {1: 0, 2: 0, 3: 2}))
    positions = torch.tensor([0, 1, 2, 3, 4, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4])
    for before in (0, 1, 4, 9):
        for start, stop in ((0, 15), (1, 12), (4, 4)):
            token_M, position_M = early_tokens(segments, before, (start, stop), torch.device("cpu"))
            assert torch.equal(token_M, torch.nonzero(positions[start:stop] < before)[:, 0])
            assert torch.equal(position_M, positions[start:stop][token_M])


@pytest.mark.parametrize(("window", "softcap"), [*product([None, 4], [None, 5.0])])
def test_a_prompt_shared_by_two_answers_gives_each_what_it_has_alone(window: int | None, softcap: float | None) -> None:
    prompt, answers = 5, (3, 6)
    row = row_of(prompt + sum(answers), 4, 2)
    terms = AttentionTerms(0.5, window, softcap)
    shared = packed_attention(row.q, row.k, row.v, tiled([prompt, *answers], {1: 0, 2: 0}), terms)
    starts = (prompt, prompt + answers[0])
    for start, length in zip(starts, answers, strict=True):
        tokens = [*range(prompt), *range(start, start + length)]
        alone = packed_attention(
            row.q[:, :, tokens], row.k[:, :, tokens], row.v[:, :, tokens], tiled([len(tokens)]), terms
        )
        assert_near(shared[:, :, tokens], alone)


def test_gradients_are_the_slopes_of_the_value() -> None:
    row = row_of(9, 4, 2, torch.float64)
    segments = tiled([3, 2, 4], {1: 0}, {2})
    terms = AttentionTerms(0.5, window=3)
    assert torch.autograd.gradcheck(
        lambda q, k, v: packed_attention(q, k, v, segments, terms), (row.q, row.k, row.v), fast_mode=True
    )


def test_bf16_rows_give_what_the_reference_gives_up_to_their_rounding() -> None:
    row = row_of(20, 4, 2, torch.bfloat16)
    for terms in (AttentionTerms(0.5), AttentionTerms(0.5, window=3, softcap=4.0)):
        results = [
            attend(row.q, row.k, row.v, tiled([8, 12]), terms)
            for attend in (packed_attention, packed_attention_reference)
        ]
        assert results[0].dtype == torch.bfloat16
        assert_near(results[0], results[1], 2**-6)
        slopes = [torch.autograd.grad(y, (row.q, row.k, row.v), row.dy) for y in results]
        assert_all_near(slopes[0], slopes[1], 2**-4)


@pytest.mark.parametrize("terms", [AttentionTerms(0.5), AttentionTerms(0.5, softcap=3.0)])
def test_a_query_that_sees_nothing_gives_a_finite_number_and_takes_nothing_from_others(terms: AttentionTerms) -> None:
    row = row_of(4, 2, 2)
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    mask[:, :2] = False  # left padding: the first two queries see nothing
    out = masked_attention(row.q, row.k, row.v, mask, terms)
    assert bool(torch.isfinite(out).all())
    seen = masked_attention(row.q[:, :, 2:], row.k[:, :, 2:], row.v[:, :, 2:], mask[2:, 2:], terms)
    assert_near(out[:, :, 2:], seen)
    for gradient in torch.autograd.grad(out[:, :, 2:].sum(), (row.q, row.k, row.v)):
        assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("kind", ["none", "truth values", "numbers"])
def test_under_a_narrowed_mask_attention_is_that_to_the_keys_left(kind: str) -> None:
    row = row_of(6, 2, 2)
    causal_QT = torch.ones(6, 6, dtype=torch.bool).tril()
    numbers_QT = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).masked_fill(~causal_QT, -1e30)
    mask_QT = {"none": None, "truth values": causal_QT, "numbers": numbers_QT}[kind]
    is_left_T = torch.tensor([True, False, True, True, False, True])
    seen = masked_attention(row.q, row.k, row.v, narrowed(mask_QT, is_left_T.expand(1, 1, 6, 6)), AttentionTerms(0.7))
    left = None if mask_QT is None else mask_QT[:, is_left_T]
    k, v = (states[:, :, is_left_T] for states in (row.k, row.v))
    assert_near(seen, masked_attention(row.q, k, v, left, AttentionTerms(0.7)))
