"""Runs over kept token sets and mixtures: the same bits from anywhere, resumed in the middle, and losses by task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_runs import Cut, begin, course, cut_after, go_on, outcome, recipe_values, write_rows
from token_sets import small_limits

from luthier import api


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return small_limits(tmp_path / "home", monkeypatch)


def test_a_run_has_the_same_bits_with_and_without_the_cache_and_from_any_number_of_processes(
    tmp_path: Path, tiny_model: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 48)

    def run(name: str, **data: Any) -> Any:
        values = recipe_values(tiny_model, rows, data={"validation": "auto", "processes": 1, **data})
        begin(values, tmp_path / name)
        return outcome(tmp_path / name)

    made, again = run("made"), run("again")
    assert made == again
    assert len(list(home.glob("rows-*"))) == 1
    assert run("two", processes=2, cache_gb=0) == made
    monkeypatch.undo()
    assert run("memory", cache_gb=0) == made


def mixture(tmp_path: Path) -> dict[str, Any]:
    files = {
        name: write_rows(tmp_path / f"{name}.jsonl", count, start)
        for name, count, start in (("a", 40, 0), ("b", 25, 500))
    }
    train = [{"path": str(files["a"]), "max_rows": 10}, {"path": str(files["b"]), "task": "later"}]
    return {"train": train, "validation": "auto", "temperature": 3.0}


def test_a_run_broken_off_in_the_middle_of_a_mixture_goes_on_to_the_same_bits(
    tmp_path: Path, tiny_model: Path, home: Path
) -> None:
    values = recipe_values(tiny_model, Path("unused"), data=mixture(tmp_path), training={"steps": 9})
    begin(values, tmp_path / "whole")
    with pytest.raises(Cut):
        begin(values, tmp_path / "broken", cut_after(5))
    go_on(tmp_path / "broken")
    assert outcome(tmp_path / "broken") == outcome(tmp_path / "whole")


def test_losses_are_told_by_task_in_training_and_in_evaluation(tmp_path: Path, tiny_model: Path) -> None:
    values = recipe_values(tiny_model, Path("unused"), data=mixture(tmp_path))
    run = tmp_path / "run"
    begin(values, run)
    last = course(run)[-1]
    of_tasks = last["validation_loss_by_task"]
    assert list(of_tasks) == ["a", "later"]
    assert min(of_tasks.values()) <= last["validation_loss"] <= max(of_tasks.values())
    assert {task for line in course(run) for task in line["loss_by_task"]} == {"a", "later"}
    for line in course(run):
        assert min(line["loss_by_task"].values()) - 1e-5 <= line["loss"] <= max(line["loss_by_task"].values()) + 1e-5
    said: list[str] = []
    evaluation = api.evaluate(str(run), announce=said.append)
    tuned = {measure.name: measure.estimates[1].value for measure in evaluation.measures}
    assert tuned["loss: a"] == pytest.approx(of_tasks["a"], rel=1e-4)
    assert tuned["loss: later"] == pytest.approx(of_tasks["later"], rel=1e-4)
    assert tuned["loss"] == pytest.approx(last["validation_loss"], rel=1e-4)
