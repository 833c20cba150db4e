"""Packing: micro-batches within the budget, and two layouts that hold the same targets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_examples import rows_of

from luthier.data.packing import assign_workers, check_lengths, collate, plan_micro_batches
from luthier.errors import RecipeError
from luthier.ops.prefixes import common_prefix
from luthier.types import Batch, Example, Layout, Origin, Part

LAYOUTS: tuple[Layout, ...] = ("packed", "bucketed")
BUDGET = 64
lengths_of = st.lists(st.integers(1, BUDGET), max_size=30)


def cost(lengths: list[int], rows: list[int], layout: Layout) -> int:
    """Tokens that a micro-batch computes, padding included."""
    chosen = [lengths[row] for row in rows]
    return sum(chosen) if layout == "packed" else len(chosen) * max(chosen)


def targets_of(batch: Batch) -> list[tuple[int, int, float, int]]:
    """(the token at the source, the target's token, its weight, its sample), in order."""
    source_token_N = batch.tokens_BT.flatten()[batch.targets.source_N]
    columns = (source_token_N, batch.targets.token_N, batch.targets.weight_N, batch.targets.sample_N)
    return list(zip(*(column.tolist() for column in columns), strict=True))


# ── the plan ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=60, deadline=None)
@given(lengths=lengths_of, workers=st.integers(1, 5))
def test_every_row_is_in_one_micro_batch_and_none_passes_the_budget(
    layout: Layout, lengths: list[int], workers: int
) -> None:
    plan = plan_micro_batches(lengths, BUDGET, workers, layout)
    assert sorted(row for rows in plan for row in rows) == list(range(len(lengths)))
    assert all(cost(lengths, rows, layout) <= BUDGET for rows in plan)
    assert all(rows == sorted(rows) for rows in plan)
    assert plan == plan_micro_batches(lengths, BUDGET, workers, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_is_work_for_every_worker_where_there_are_rows_enough(layout: Layout) -> None:
    assert [len(plan_micro_batches([5] * 12, BUDGET, workers, layout)) for workers in (1, 2, 3, 4)] == [1, 2, 3, 4]
    assert len(plan_micro_batches([5] * 2, BUDGET, 4, layout)) == 2
    assert len(plan_micro_batches([30] * 6, BUDGET, 2, layout)) == 4


def test_a_packed_plan_uses_the_fewest_micro_batches_that_one_worker_needs() -> None:
    assert len(plan_micro_batches([40, 30, 30, 20, 4], BUDGET, 1, "packed")) == 2
    assert len(plan_micro_batches([33] * 4, BUDGET, 1, "packed")) == 4


def test_packed_workers_get_near_equal_loads() -> None:
    lengths = [60, 31, 29, 20, 20, 20]
    plan = plan_micro_batches(lengths, BUDGET, 3, "packed")
    assert [cost(lengths, rows, "packed") for rows in plan] == [60, 60, 60]


def test_buckets_hold_rows_of_near_equal_length() -> None:
    lengths = [3, 30, 4, 31, 3, 29]
    plan = plan_micro_batches(lengths, 93, 2, "bucketed")
    assert plan == [[0, 2, 4], [1, 3, 5]]


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, BUDGET), min_size=1, max_size=12), workers=st.integers(1, 4))
def test_no_cut_of_as_many_buckets_has_a_cheaper_dearest_one(lengths: list[int], workers: int) -> None:
    plan = plan_micro_batches(lengths, BUDGET, workers, "bucketed")
    dearest = max(cost(lengths, rows, "bucketed") for rows in plan)
    ordered = sorted(lengths, reverse=True)

    def fewest_within(limit: int) -> int:
        count, start = 0, 0
        while start < len(ordered):
            start += max(1, limit // ordered[start])
            count += 1
        return count

    assert dearest == max(lengths) or fewest_within(dearest - 1) > len(plan)


@settings(max_examples=60, deadline=None)
@given(costs=st.lists(st.integers(1, 100), max_size=20), workers=st.integers(1, 5))
def test_no_worker_has_more_than_its_share_and_one_micro_batch(costs: list[int], workers: int) -> None:
    loads = np.zeros(workers)
    for index, worker in enumerate(assign_workers(costs, workers)):
        loads[worker] += costs[index]
    assert loads.sum() == sum(costs)
    assert loads.max() <= sum(costs) / workers + max(costs, default=0)


def test_a_row_longer_than_the_budget_names_the_recipes_field() -> None:
    for layout in LAYOUTS:
        with pytest.raises(RecipeError, match="65 tokens") as refused:
            plan_micro_batches([3, 65], BUDGET, 2, layout)
        assert refused.value.field == "training.tokens_per_micro_batch"
    check_lengths([3, 64], BUDGET)


# ── the tensors ─────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_both_layouts_hold_the_same_targets_in_the_same_order(lengths: list[int]) -> None:
    examples = rows_of(lengths)
    packed, bucketed = collate(examples, "packed", 0), collate(examples, "bucketed", 0)
    assert targets_of(packed) == targets_of(bucketed)
    assert packed.num_real_tokens == bucketed.num_real_tokens == sum(lengths)
    assert packed.learned_weight == bucketed.learned_weight
    assert packed.documents == bucketed.documents == tuple(range(len(lengths)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_target_is_the_token_after_its_source(layout: Layout) -> None:
    batch = collate(rows_of([5, 9, 4]), layout, 0)
    assert all(token == source + 1 for source, token, _, _ in targets_of(batch))


def test_a_packed_batch_is_one_row_without_padding() -> None:
    batch = collate(rows_of([3, 5]), "packed", 0)
    assert batch.mask_BT is None
    assert batch.tokens_BT.tolist() == [[1000, 1001, 1002, 2000, 2001, 2002, 2003, 2004]]
    assert batch.positions_BT.tolist() == [[0, 1, 2, 0, 1, 2, 3, 4]]
    assert [(s.start, s.end, s.parent) for s in batch.segments] == [(0, 3, None), (3, 8, None)]


def test_a_bucketed_batch_is_padded_at_the_right_and_masked_there() -> None:
    batch = collate(rows_of([3, 5]), "bucketed", 7)
    assert batch.tokens_BT.tolist() == [[1000, 1001, 1002, 7, 7], [2000, 2001, 2002, 2003, 2004]]
    assert batch.mask_BT is not None
    assert batch.mask_BT.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert batch.positions_BT.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert [(s.start, s.end) for s in batch.segments] == [(0, 3), (5, 10)]


def pair(document: int) -> Example:
    """A prompt of two tokens shared by answers of two and of three; the first tokens of both follow the prompt."""
    prompt, chosen, rejected = (np.array(tokens, dtype=np.int64) for tokens in ([1, 2], [3, 4], [5, 6, 7]))
    return Example(
        parts=(Part(prompt), Part(chosen, parent=0), Part(rejected, parent=0)),
        source_N=np.array([1, 2, 1, 4, 5]),
        token_N=np.array([3, 4, 5, 6, 7]),
        weight_N=np.ones(5, dtype=np.float32),
        sample_N=np.array([0, 0, 1, 1, 1]),
        document=document,
        origin=Origin("pairs.jsonl", document + 1),
    )


def test_answers_that_share_a_prompt_go_on_from_its_end() -> None:
    batch = collate([*rows_of([3]), pair(1), pair(2)], "packed", 0)
    segments = [(s.start, s.end, s.parent) for s in batch.segments]
    assert segments == [(0, 3, None), (3, 5, None), (5, 7, 1), (7, 10, 1), (10, 12, None), (12, 14, 4), (14, 17, 4)]
    assert batch.positions_BT[0, 3:10].tolist() == [0, 1, 2, 3, 2, 3, 4]
    assert batch.documents == (0, 1, 1, 1, 2, 2, 2)
    assert [target[:2] for target in targets_of(batch)][-5:] == [(2, 3), (3, 4), (2, 5), (5, 6), (6, 7)]


def test_shared_prompts_are_refused_where_packing_is_not_possible() -> None:
    with pytest.raises(RecipeError, match="packed"):
        collate([pair(0)], "bucketed", 0)


def test_batches_are_what_torch_models_take() -> None:
    for layout in LAYOUTS:
        batch = collate(rows_of([3, 5]), layout, 0)
        assert batch.tokens_BT.dtype == batch.positions_BT.dtype == batch.targets.source_N.dtype == torch.int64
        assert batch.targets.weight_N.dtype == torch.float32
        assert batch.targets.token_N.dtype == batch.targets.sample_N.dtype == torch.int64


# ── a beginning in common ───────────────────────────────────────────────────────────────────────────────────────────


def chat(document: int, system: list[int], rest: list[int], learned: int) -> Example:
    """A row that begins with a system prompt and learns its last so many tokens."""
    tokens = np.array([*system, *rest], dtype=np.int64)
    source = np.arange(len(tokens) - learned - 1, len(tokens) - 1)
    ones, zeros = np.ones(learned, dtype=np.float32), np.zeros(learned, dtype=np.int64)
    return Example((Part(tokens),), source, tokens[source + 1], ones, zeros, document, Origin("rows.jsonl", 1))


def documents_of(batch: Batch) -> list[list[int]]:
    """What each document reads, its ancestors' tokens first."""
    tokens = batch.tokens_BT[0].tolist()
    parents = {segment.parent for segment in batch.segments}
    read = []
    for index, segment in enumerate(batch.segments):
        if index not in parents:
            before = [] if segment.parent is None else batch.segments[segment.parent]
            head = tokens[before.start : before.end] if isinstance(before, type(segment)) else []
            read.append(head + tokens[segment.start : segment.end])
    return read


@settings(max_examples=60, deadline=None)
@given(
    system=st.integers(0, 12),
    rests=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=5),
    learned=st.integers(1, 4),
)
def test_sharing_a_beginning_changes_no_document_and_no_target(
    system: int, rests: list[list[int]], learned: int
) -> None:
    rows = [chat(i, [9, *range(50, 50 + system)], rest, min(learned, len(rest))) for i, rest in enumerate(rests)]
    plain, shared = (collate(rows, "packed", 0, shares_prefix=shares) for shares in (False, True))
    assert documents_of(shared) == documents_of(plain)
    assert targets_of(shared) == targets_of(plain)
    sources = (batch.positions_BT[0][batch.targets.source_N] for batch in (shared, plain))
    assert torch.equal(*sources)
    assert shared.num_real_tokens <= plain.num_real_tokens
    assert [segment.start for segment in shared.segments[1:]] == [segment.end for segment in shared.segments[:-1]]


def test_a_beginning_in_common_stands_once_and_its_rows_go_on_from_it() -> None:
    rows = [chat(4, [7] * 6, [1, 2, 3], 2), chat(5, [7] * 6, [4, 5], 1), chat(6, [7] * 6, [6, 8, 9, 9], 1)]
    batch = collate(rows, "packed", 0, shares_prefix=True)
    assert batch.tokens_BT.tolist() == [[7] * 6 + [1, 2, 3, 4, 5, 6, 8, 9, 9]]
    assert batch.positions_BT.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 8, 6, 7, 6, 7, 8, 9]]
    assert [(s.start, s.end, s.parent) for s in batch.segments] == [(0, 6, None), (6, 9, 0), (9, 11, 0), (11, 15, 0)]
    assert batch.documents == (4, 4, 5, 6)
    assert batch.targets.source_N.tolist() == [6, 7, 9, 13]


def test_a_token_that_is_learned_from_is_not_shared() -> None:
    rows = [chat(0, [7] * 6, [1], 3), chat(1, [7] * 6, [2], 1)]  # the first learns two tokens of what both begin with
    assert [segment.end for segment in collate(rows, "packed", 0, shares_prefix=True).segments] == [3, 7, 11]


@pytest.mark.parametrize("rows", [[pair(1), pair(2)], [chat(0, [7] * 6, [1], 1)], rows_of([5, 6])])
def test_where_there_is_nothing_to_share_the_row_is_as_ever(rows: list[Example]) -> None:
    shared, plain = (collate(rows, "packed", 0, shares_prefix=shares) for shares in (True, False))
    assert shared.segments == plain.segments


def test_rows_that_differ_at_once_have_no_beginning_in_common() -> None:
    assert common_prefix([np.array([1, 2]), np.array([2, 2])], 2) == 0
    assert common_prefix([np.array([1, 2, 3]), np.array([1, 2, 4, 5]), np.array([1, 2, 3])], 3) == 2
