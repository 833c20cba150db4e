"""Placeholders before a document: where they stand, and that its targets stay with their tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from models.rows import random_row

from luthier.data.batches import StepBatches
from luthier.data.packing import collate
from luthier.data.placeholders import PLACEHOLDER, with_placeholders
from luthier.types import Example, IntArray, Part


def flat(example: Example) -> IntArray:
    """The tokens of all parts, end to end."""
    return np.concatenate([part.tokens_T for part in example.parts])


@st.composite
def examples(draw: st.DrawFn) -> Example:
    """An example of several parts, some below others, all tokens different, some learned."""
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    parents = [None if i == 0 else draw(st.sampled_from([None, *range(i)])) for i in range(len(lengths))]
    ends = np.cumsum(lengths)
    tokens = [np.arange(end - length, end) + 100 for length, end in zip(lengths, ends, strict=True)]
    source_N = np.array(sorted(draw(st.sets(st.integers(0, int(ends[-1]) - 1)))), dtype=np.int64)
    ones = np.ones(len(source_N))
    parts = tuple(Part(t, parent) for t, parent in zip(tokens, parents, strict=True))
    return replace(
        random_row(3, 0), parts=parts, source_N=source_N, token_N=source_N, weight_N=ones, sample_N=source_N * 0
    )


@given(example=examples(), count=st.integers(0, 4))
def test_every_root_part_begins_with_placeholders_and_targets_keep_their_tokens(example: Example, count: int) -> None:
    placed = with_placeholders(example, count)
    for before, after in zip(example.parts, placed.parts, strict=True):
        added = count if before.parent is None else 0
        assert after.tokens_T[:added].tolist() == [PLACEHOLDER] * added
        assert after.tokens_T[added:].tolist() == before.tokens_T.tolist()
        assert (after.parent, after.causal) == (before.parent, before.causal)
    assert flat(placed)[placed.source_N].tolist() == flat(example)[example.source_N].tolist()
    assert placed.num_real_tokens == example.num_tokens == example.num_real_tokens


def test_real_tokens_have_the_positions_after_the_placeholders() -> None:
    row = random_row(5, 0)
    for layout in ("packed", "bucketed"):
        batch = collate([with_placeholders(row, 3)], layout, 0)
        assert batch.positions_BT[0].tolist() == list(range(8))
        assert batch.tokens_BT[0, 3:].tolist() == row.parts[0].tokens_T.tolist()


def test_placeholders_change_neither_the_rows_of_a_step_nor_its_count_of_tokens_but_count_for_the_budget() -> None:
    rows = [random_row(length, index) for index, length in enumerate((4, 6, 3, 5))]
    steps = []
    for count in (0, 2):
        placed = [with_placeholders(row, count) for row in rows]
        batches = StepBatches(
            placed, rows_per_step=None, tokens_per_step=9, budget=8, workers=1, layout="packed", pad_id=0, seed=0
        )
        steps.append(list(batches))
    assert [step.rows for step in steps[0]] == [step.rows for step in steps[1]]
    assert [step.real_tokens for step in steps[0]] == [step.real_tokens for step in steps[1]]
    assert all(batch.tokens_BT.numel() <= 8 for step in steps[1] for batch in step.micro_batches)


def test_of_several_texts_each_keeps_its_second_ones_marks_behind_its_own_placeholders() -> None:
    parts = (Part(np.array([5, 6, 7])), Part(np.array([8, 9])))
    example = replace(random_row(5, 0), parts=parts, types_P=np.array([0, 1, 1, 0, 1]))
    assert with_placeholders(example, 2).types_P.tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 1]
