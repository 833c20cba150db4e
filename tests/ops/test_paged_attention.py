"""Attention over pages against plain attention over each row's own keys."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from near import assert_near
from torch import Tensor

from luthier.ops.attention import AttentionTerms, masked_attention
from luthier.ops.paged_attention import PagePlan, Pasts, PromptPart, paged_attention, prompt_attention
from luthier.ops.segments import block_mask

PAGES, SIZE, KV, GROUP, WIDTH = 24, 4, 2, 3, 8
CPU = torch.device("cpu")
Row = list[tuple[int, int]]  # pages of a row, and how many places of each are filled


def plan_of(rows: list[Row]) -> PagePlan:
    """The plan for rows of pages."""
    pairs = [
        (number, page, sum(fill for _, fill in row[:index]), fill)
        for number, row in enumerate(rows)
        for index, (page, fill) in enumerate(row)
    ]
    row_X, page_X, first_X, fill_X = np.array(pairs).T
    length_N = np.array([sum(fill for _, fill in row) for row in rows])
    return PagePlan(Pasts(row_X, page_X, first_X, fill_X, length_N), SIZE, CPU)


def alone(q_HE: Tensor, k_PSKE: Tensor, v_PSKE: Tensor, row: Row, terms: AttentionTerms) -> Tensor:
    """The newest token's attention over one row's own keys."""
    k_1KLE, v_1KLE = (torch.cat([x[page, :fill] for page, fill in row]).transpose(0, 1)[None] for x in (k_PSKE, v_PSKE))
    mask = block_mask(1, k_1KLE.shape[2], True, terms.window, CPU)
    return masked_attention(q_HE[None, :, None], k_1KLE, v_1KLE, mask, terms)[0, :, 0]


@st.composite
def rows_of_pages(draw: st.DrawFn) -> list[Row]:
    """Rows with pages of their own, some of which go on from pages that others read too."""
    free = list(draw(st.permutations(range(PAGES))))
    shared = [[(free.pop(), SIZE), (free.pop(), draw(st.integers(1, SIZE)))] for _ in range(2)]
    rows = []
    for _ in range(draw(st.integers(1, 6))):
        begun = draw(st.sampled_from([[], *shared]))
        own = [(free.pop(), SIZE) for _ in range(draw(st.integers(0, 2)))]
        rows.append([*begun, *own, (free.pop(), draw(st.integers(1, SIZE)))])
    return rows


@settings(max_examples=60, deadline=None)
@given(rows=rows_of_pages(), window=st.sampled_from([None, 1, 3, 7]), softcap=st.sampled_from([None, 5.0]))
def test_each_row_attends_to_its_own_pages_alone(rows: list[Row], window: int | None, softcap: float | None) -> None:
    torch.manual_seed(0)
    k_PSKE, v_PSKE = torch.randn(2, PAGES, SIZE, KV, WIDTH)
    q_NHE = torch.randn(len(rows), KV * GROUP, WIDTH)
    terms = AttentionTerms(0.3, window, softcap)
    found = paged_attention(q_NHE, k_PSKE, v_PSKE, plan_of(rows), terms)
    assert_near(found, torch.stack([alone(*each, terms) for each in _each(q_NHE, k_PSKE, v_PSKE, rows)]))


def _each(q_NHE: Tensor, k: Tensor, v: Tensor, rows: list[Row]) -> list[tuple[Tensor, Tensor, Tensor, Row]]:
    return [(q_HE, k, v, row) for q_HE, row in zip(q_NHE, rows, strict=True)]


def test_pages_beside_each_other_are_read_together_and_a_shared_one_once() -> None:
    plan = plan_of([[(0, SIZE), (1, 2)], [(2, SIZE), (3, 1)], [(8, SIZE), (4, 1)], [(8, SIZE), (5, 1)]])
    assert [(reading.start, reading.stop) for reading in plan.readings] == [(0, 6), (8, 9)]
    assert plan.pasts.row[plan.readings[1].pair_PM].tolist() == [[2, 3]]


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_new_tokens_of_a_prompt_see_its_past_and_each_other(window: int | None, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    k_PSKE, v_PSKE = torch.randn(2, PAGES, SIZE, KV, WIDTH, dtype=dtype)
    q, k, v = (torch.randn(1, heads, 9, WIDTH, dtype=dtype) for heads in (KV * GROUP, KV, KV))
    past_C = torch.tensor([12, 13, 14, 15, 40, 41])
    terms = AttentionTerms(0.3, window)
    parts = [PromptPart(0, 4, None), PromptPart(4, 9, past_C)]
    first, second = prompt_attention(q, k, v, k_PSKE, v_PSKE, parts, terms)
    assert_near(first, _causal(q[:, :, :4], k[:, :, :4], v[:, :, :4], terms))
    both = (
        torch.cat([x.flatten(0, 1)[past_C].transpose(0, 1)[None], own[:, :, 4:]], dim=2)
        for x, own in ((k_PSKE, k), (v_PSKE, v))
    )
    assert_near(second, _causal(q[:, :, 4:], *both, terms))


def _causal(q: Tensor, k: Tensor, v: Tensor, terms: AttentionTerms) -> Tensor:
    return masked_attention(q, k, v, block_mask(q.shape[2], k.shape[2], True, terms.window, CPU), terms)
