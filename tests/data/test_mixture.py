"""Mixtures: shares, caps, passes over each source, and what the rows know of their task."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_examples import rows_of
from token_sets import loaded, write_chats

from luthier.data.batches import StepBatches
from luthier.data.mixture import Mixture, by_task, mixture_of
from luthier.data.settings import DataSettings, DataSource
from luthier.errors import RecipeError
from luthier.recipe import make_recipe


def mixed(sizes: list[int], temperature: float = 1.0, **values: list[Any]) -> Mixture:
    given = [{name: column[i] for name, column in values.items()} for i in range(len(sizes))]
    sources = [DataSource(path=f"{i}.jsonl", **each) for i, each in enumerate(given)]
    return mixture_of([str(i) for i in range(len(sizes))], sources, sizes, temperature)


def taken_in(mixture: Mixture, epochs: int, seed: int = 5) -> list[Counter[int]]:
    """How often each row of each source comes in so many epochs."""
    counts = Counter(row for epoch in range(epochs) for row in mixture.rows_of(seed, epoch))
    starts = np.cumsum([0, *mixture.sizes])
    return [
        Counter({row - int(start): counts[row] for row in range(start, start + size)})
        for start, size in zip(starts, mixture.sizes, strict=False)
    ]


def test_at_temperature_1_an_epoch_takes_every_row_once():
    mixture = mixed([7, 40, 3])
    assert mixture.quotas == (7, 40, 3)
    assert sorted(mixture.rows_of(1, 0)) == list(range(50))
    assert mixture.rows_of(1, 0) != mixture.rows_of(1, 1) != mixture.rows_of(2, 1)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_over_many_draws_a_source_of_n_rows_comes_in_proportion_to_n_to_the_1_over_t(temperature: float):
    sizes = [800, 90, 10]
    mixture = mixed(sizes, temperature)
    rates = np.array(sizes) ** (1 / temperature)
    drawn = [sum(counts.values()) for counts in taken_in(mixture, 40)]
    assert sum(drawn) == 40 * 900
    assert np.array(drawn) / sum(drawn) == pytest.approx(rates / rates.sum(), abs=1 / 900)


def test_weights_stand_in_place_of_sizes():
    mixture = mixed([1000, 10, 190], weight=[1, 1, 2])
    assert mixture.quotas == (300, 300, 600)


def test_a_cap_bounds_what_an_epoch_takes_and_later_epochs_go_on_where_it_ended():
    mixture = mixed([100, 20], max_rows=[30, None])
    assert mixture.quotas == (30, 20)
    assert mixed([100, 20], weight=[5, 1], max_rows=[30, None]).quotas[0] == 30
    capped, _ = taken_in(mixture, 10)
    assert set(capped.values()) == {3}
    first = {row for row in mixture.rows_of(5, 0) if row < 100}
    assert len(first) == 30
    assert not first & {row for row in mixture.rows_of(5, 1) if row < 100}


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=5).filter(any),
    st.floats(1, 8),
    st.integers(0, 2**63),
    st.integers(1, 6),
)
@settings(max_examples=60, deadline=None)
def test_the_rows_of_a_source_come_equally_often_give_or_take_one(
    sizes: list[int], temperature: float, seed: int, epochs: int
):
    mixture = mixed(sizes, temperature)
    for counts, size, quota in zip(taken_in(mixture, epochs, seed), sizes, mixture.quotas, strict=True):
        assert sum(counts.values()) == epochs * quota
        assert size == 0 or max(counts.values()) - min(counts.values()) <= 1
        assert (quota > 0) == (size > 0)


def test_a_run_that_goes_on_within_a_mixture_takes_the_same_steps():
    def batches() -> StepBatches:
        return StepBatches(
            rows_of([8] * 60), rows_per_step=4, tokens_per_step=None, budget=64, workers=1, layout="packed", pad_id=0,
            seed=3, epochs=3, mixture=mixed([50, 10], 3.0),
        )  # fmt: skip

    whole, broken = batches(), batches()
    assert whole.num_steps == 3 * 15
    for _ in range(20):
        next(whole), next(broken)
    gone_on = batches()
    gone_on.load_state_dict(json.loads(json.dumps(broken.state_dict())))
    assert [step.rows for step in gone_on] == [step.rows for step in whole]


# ── recipes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"train": [{"path": "a.jsonl", "weight": 1}, {"path": "b.jsonl"}]}, "data.train"),
        ({"train": [{"path": "a.jsonl", "weight": 1}], "temperature": 2}, "data.temperature"),
        ({"train": ["a.jsonl", "b.jsonl"], "temperature": 2}, "data.temperature"),
        ({"train": [{"path": "a.jsonl"}], "max_rows": 5}, "data.max_rows"),
        ({"train": [{"path": "a.jsonl", "format": "template"}]}, "data.format"),
        ({"train": [{"path": "a.jsonl", "share": 1}]}, "share"),
        ({"train": []}, "data.train"),
    ],
)
def test_a_mixture_that_contradicts_itself_is_refused_at_its_field(data: dict[str, Any], field: str):
    with pytest.raises(RecipeError) as refused:
        make_recipe({"model": "smollm2-135m", "data": data})
    assert field in str(refused.value.as_json())


@pytest.fixture
def sources(tmp_path: Path) -> list[dict[str, Any]]:
    """Chats, and prompts with completions under names of their own."""
    other = tmp_path / "sums.jsonl"
    other.write_text("".join(json.dumps({"a": f"{i} and {i}", "b": str(2 * i)}) + "\n" for i in range(90)))
    return [
        {"path": write_chats(tmp_path / "chats.jsonl", 30), "task": "orders"},
        {"path": str(other), "template": {"prompt": "{a}", "completion": "{b}"}},
    ]


@pytest.mark.parametrize("is_large", [False, True])
def test_rows_of_a_mixture_know_their_task_and_their_number(
    tmp_path: Path, sources: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, is_large: bool
):
    if is_large:
        from token_sets import small_limits

        small_limits(tmp_path / "home", monkeypatch)
    dataset = loaded(sources)
    assert dataset.mixture is not None
    assert dataset.mixture.tasks == ("orders", "sums")
    assert dataset.mixture.sizes == (24, 74)
    assert {task: len(rows) for task, rows in by_task(dataset.train).items()} == {"orders": 24, "sums": 74}
    assert {task: len(rows) for task, rows in by_task(dataset.validation).items()} == {"orders": 6, "sums": 16}
    documents = [row.document for row in (*dataset.train, *dataset.validation)]
    assert sorted(documents) == list(range(120))
    assert {row.origin.file for row in dataset.train if row.origin.task == "sums"} == {sources[1]["path"]}
    assert any("orders 24" in note and "sums 74" in note for note in dataset.notes)


def test_a_prompt_that_two_tasks_ask_is_never_on_both_sides(tmp_path: Path):
    first, second = (write_chats(tmp_path / f"{name}.jsonl", 60 + 40 * (name == "b")) for name in "ab")
    dataset = loaded([{"path": first}, {"path": second}])
    asked = [
        {record.messages[0].content for record in records}  # type: ignore[union-attr]
        for records in (dataset.train_records, dataset.validation_records)
    ]
    assert not asked[0] & asked[1]


def test_held_out_rows_may_be_a_mixture_too(sources: list[dict[str, Any]]):
    dataset = loaded(sources[0]["path"], validation=sources)
    assert dataset.mixture is None
    assert {task: len(rows) for task, rows in by_task(dataset.validation).items()} == {"orders": 30, "sums": 90}


def test_a_file_alone_is_no_mixture_and_files_are_read_as_one(tmp_path: Path):
    files = tuple(write_chats(tmp_path / f"{name}.jsonl", 10) for name in "ab")
    dataset = loaded(files, validation="none")
    assert dataset.mixture is None
    assert {row.origin.task for row in dataset.train} == {None}
    assert DataSettings(train=files).temperature == 1
