"""A run is planned before it begins, and refused if it cannot fit."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import course, nothing, recipe_values, write_rows

from luthier.errors import ResourceError, Unplannable
from luthier.recipe import make_recipe
from luthier.run import train_recipe
from luthier.store.files import read_json
from luthier.store.runs import PLAN, read_run


def test_a_run_that_fits_is_planned_and_carried_out(tiny_model: Path, tmp_path: Path) -> None:
    said: list[str] = []
    recipe = make_recipe(recipe_values(tiny_model, write_rows(tmp_path / "rows.jsonl", 12)))
    train_recipe(recipe, tmp_path / "run", announce=said.append, on_step=nothing, plans=True)
    plan = read_json(tmp_path / "run" / PLAN)
    assert plan["verdict"] == "fits"
    assert sum(plan["parts"].values()) == plan["peak_bytes"] == read_run(tmp_path / "run").planned_bytes
    assert any(sentence.startswith("Planned: ") for sentence in said)
    assert len(course(tmp_path / "run")) == 6


def test_a_run_that_cannot_fit_is_refused_with_what_would_help(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luthier.planner.gate.memory_of", lambda device: 400 * 10**6)
    values = recipe_values(tiny_model, write_rows(tmp_path / "rows.jsonl", 12), method={"kind": "full", "rank": None})
    recipe = make_recipe(values)
    with pytest.raises(ResourceError, match="would need") as refused:
        train_recipe(recipe, tmp_path / "run", announce=nothing, on_step=nothing, plans=True)
    assert "--no-plan" in refused.value.mend
    assert "method: {kind: lora}" in refused.value.mend
    assert read_run(tmp_path / "run").state == "failed"
    train_recipe(recipe, tmp_path / "run", announce=nothing, on_step=nothing)
    assert read_run(tmp_path / "run").state == "finished"


def test_what_a_recipe_lets_training_hold_bounds_what_is_there(tiny_model: Path, tmp_path: Path) -> None:
    values = recipe_values(tiny_model, write_rows(tmp_path / "rows.jsonl", 12), training={"memory_limit_gb": 0.4})
    with pytest.raises(ResourceError, match=r"400\.0 MB are allowed \(training\.memory_limit_gb\)"):
        train_recipe(make_recipe(values), tmp_path / "run", announce=nothing, on_step=nothing, plans=True)


def test_what_cannot_be_planned_is_carried_out_all_the_same(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unplannable(*_: object, **__: object) -> None:
        raise Unplannable("It depends on the numbers.", "Train without a plan.")

    monkeypatch.setattr("luthier.planner.gate.make_plan", unplannable)
    said: list[str] = []
    recipe = make_recipe(recipe_values(tiny_model, write_rows(tmp_path / "rows.jsonl", 12)))
    train_recipe(recipe, tmp_path / "run", announce=said.append, on_step=nothing, plans=True)
    assert "The run is not planned: It depends on the numbers." in said
    assert not (tmp_path / "run" / PLAN).exists()
