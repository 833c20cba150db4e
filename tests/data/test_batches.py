"""Steps: every row once an epoch, an order that seed and epoch decide, and a place to go on from."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_examples import rows_of

from luthier.data.batches import Step, StepBatches, evaluation_batches
from luthier.data.mixture import epoch_order
from luthier.errors import DataError, RecipeError, RunMismatch
from luthier.types import Layout

LENGTHS = [5, 9, 2, 12, 7, 7, 3, 20, 4, 6, 11]


def batches_of(lengths: list[int], **values: Any) -> StepBatches:
    given_values: dict[str, Any] = {
        "rows_per_step": None if "tokens_per_step" in values else 3,
        "tokens_per_step": None,
        "budget": 24,
        "workers": 2,
        "layout": "packed",
        "pad_id": 0,
        "seed": 0,
        **values,
    }
    return StepBatches(rows_of(lengths), **given_values)


def contents(step: Step) -> tuple[Any, ...]:
    """All that a step holds, in a form that can be compared."""
    tokens = [batch.tokens_BT.tolist() for batch in step.micro_batches]
    targets = [batch.targets.source_N.tolist() for batch in step.micro_batches]
    numbers = (step.learned_weight, step.learned_tokens, step.real_tokens, step.epoch)
    return step.number, tokens, targets, step.worker_of, step.rows, numbers


sizes = st.one_of(
    st.integers(1, 12).map(lambda rows: {"rows_per_step": rows, "tokens_per_step": None}),
    st.integers(1, 60).map(lambda tokens: {"rows_per_step": None, "tokens_per_step": tokens}),
)


@settings(max_examples=40, deadline=None)
@given(size=sizes, epochs=st.integers(1, 3), seed=st.integers(0, 5))
def test_every_row_comes_exactly_once_an_epoch(size: dict[str, Any], epochs: int, seed: int) -> None:
    rows = [row for step in batches_of(LENGTHS, epochs=epochs, seed=seed, **size) for row in step.rows]
    for epoch in range(epochs):
        ours = rows[epoch * len(LENGTHS) : (epoch + 1) * len(LENGTHS)]
        assert sorted(ours) == list(range(len(LENGTHS)))
    assert len(rows) == epochs * len(LENGTHS)


@settings(max_examples=40, deadline=None)
@given(size=sizes, epochs=st.floats(0.01, 3.2))
def test_the_number_of_steps_is_known_beforehand(size: dict[str, Any], epochs: float) -> None:
    batches = batches_of(LENGTHS, epochs=epochs, **size)
    steps = list(batches)
    assert len(steps) == batches.num_steps >= 1
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))
    assert abs(sum(len(step.rows) for step in steps) - epochs * len(LENGTHS)) <= 1


@settings(max_examples=40, deadline=None)
@given(size=sizes, taken=st.integers(0, 12), layout=st.sampled_from(["packed", "bucketed"]))
def test_resumed_steps_equal_unbroken_ones(size: dict[str, Any], taken: int, layout: Layout) -> None:
    unbroken = batches_of(LENGTHS, steps=14, layout=layout, **size)
    for _ in range(taken):
        next(unbroken)
    state = json.loads(json.dumps(unbroken.state_dict()))
    resumed = batches_of(LENGTHS, steps=14, layout=layout, **size)
    resumed.load_state_dict(state)
    rest = [contents(step) for step in unbroken]
    assert [contents(step) for step in resumed] == rest
    assert len(rest) == 14 - taken


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    def orders(**values: Any) -> list[list[int]]:
        rows = [row for step in batches_of(LENGTHS, epochs=2, **values) for row in step.rows]
        return [rows[: len(LENGTHS)], rows[len(LENGTHS) :]]

    first, second = orders()
    assert first != second
    assert (
        orders(rows_per_step=5) == orders(tokens_per_step=30) == orders(workers=1, layout="bucketed") == [first, second]
    )
    assert orders(seed=1) != [first, second]
    assert [epoch_order(len(LENGTHS), 0, epoch) for epoch in (0, 1)] == [first, second]


def test_an_order_is_the_same_wherever_it_is_drawn() -> None:
    assert epoch_order(8, 0, 0) == [0, 2, 1, 5, 4, 3, 6, 7]  # another order would change every recorded run
    assert sorted(epoch_order(1000, -1, 7)) == list(range(1000))


@pytest.mark.parametrize("layout", ["packed", "bucketed"])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_no_micro_batch_passes_the_budget_and_a_steps_rows_are_all_in_it(layout: Layout, workers: int) -> None:
    examples = rows_of(LENGTHS)
    for step in batches_of(LENGTHS, layout=layout, workers=workers, rows_per_step=7):
        assert all(batch.tokens_BT.numel() <= 24 for batch in step.micro_batches)
        assert sorted(document for batch in step.micro_batches for document in batch.documents) == sorted(step.rows)
        assert len(step.worker_of) == len(step.micro_batches)
        assert all(0 <= worker < workers for worker in step.worker_of)
        assert step.real_tokens == sum(examples[row].num_tokens for row in step.rows)
        assert step.learned_tokens == sum(len(batch.targets.token_N) for batch in step.micro_batches)
        assert step.learned_weight == sum(batch.learned_weight for batch in step.micro_batches)


def test_a_step_counted_in_tokens_takes_rows_until_the_next_would_pass_it() -> None:
    lengths = LENGTHS
    steps = list(batches_of(lengths, tokens_per_step=16, epochs=1))
    order = [row for step in steps for row in step.rows]
    position = 0
    for step in steps:
        tokens = sum(lengths[row] for row in step.rows)
        position += len(step.rows)
        assert tokens <= 16 or len(step.rows) == 1
        assert position == len(order) or tokens + lengths[order[position]] > 16


def test_the_last_smaller_step_of_an_epoch_is_kept() -> None:
    assert [len(step.rows) for step in batches_of(LENGTHS, epochs=2)] == [3, 3, 3, 2] * 2


def test_a_part_of_an_epoch_stops_early() -> None:
    steps = list(batches_of([4] * 10, epochs=1.5, rows_per_step=4))
    assert [len(step.rows) for step in steps] == [4, 4, 2, 4, 1]
    assert steps[-1].epoch == 1.5
    assert [step.epoch for step in steps][:3] == [0.4, 0.8, 1.0]


def test_steps_go_before_epochs_and_may_take_more_than_one() -> None:
    steps = list(batches_of([4] * 10, epochs=1.0, steps=5, rows_per_step=4))
    assert len(steps) == 5
    assert steps[-1].epoch == 1.8


def test_a_row_longer_than_the_budget_is_told_before_the_first_step() -> None:
    with pytest.raises(RecipeError, match="tokens_per_micro_batch"):
        batches_of([3, 25])


def test_a_run_without_rows_is_refused() -> None:
    with pytest.raises(DataError, match="no row"):
        batches_of([])


def test_a_place_that_the_run_does_not_have_is_refused() -> None:
    batches = batches_of(LENGTHS, epochs=1)
    for state in ({"epoch": 0, "position": 12, "step": 1}, {"epoch": 0, "position": 0, "step": 99}):
        with pytest.raises(RunMismatch):
            batches.load_state_dict(state)


@pytest.mark.parametrize("layout", ["packed", "bucketed"])
def test_evaluation_takes_every_row_once_in_an_order_that_never_changes(layout: Layout) -> None:
    examples = rows_of(LENGTHS)
    first, again = (evaluation_batches(examples, 24, 2, layout, 0) for _ in range(2))
    assert sorted(document for batch in first for document in batch.documents) == list(range(len(LENGTHS)))
    for one, other in zip(first, again, strict=True):
        torch.testing.assert_close(one.tokens_BT, other.tokens_BT, rtol=0, atol=0)
    assert evaluation_batches([], 24, 2, layout, 0) == []
