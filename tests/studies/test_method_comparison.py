"""Methods compared on the same rows: what is measured, what is kept, and what is refused."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from program import within
from tiny_runs import nothing, recipe_values, write_rows

import luthier.studies.method_comparison as study
from luthier.errors import LuthierError, UsageError
from luthier.methods import METHODS, kind_of
from luthier.recipe import Recipe, make_recipe
from luthier.studies.comparison_report import PLOT, REPORT, write_comparison_report
from luthier.studies.contenders import contenders_of_kinds
from luthier.studies.method_comparison import RESULTS, MethodComparison, compare_methods
from luthier.studies.published import PUBLISHED, published_table


def recipe_of(folder: Path, model: Path, **parts: Any) -> Recipe:
    """A recipe that holds out ten rows of a file of their own."""
    held_out = write_rows(folder / "held.jsonl", 10, 50)
    data = {"validation": str(held_out), **parts.pop("data", {})}
    return make_recipe(recipe_values(model, write_rows(folder / "rows.jsonl", 24), data=data, **parts))


def compared(
    recipe: Recipe, folder: Path, kinds: tuple[str, ...] = ("lora", "full"), seeds: int = 1, **rest: Any
) -> MethodComparison:
    return compare_methods(recipe, contenders_of_kinds(recipe, kinds, seeds), folder, nothing, **rest)


@pytest.fixture
def within_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run is trained here, and not in a process of its own, which takes seconds to begin."""

    def run(command: list[str], **rest: Any) -> SimpleNamespace:
        return SimpleNamespace(returncode=within(*command[3:], "--plain-allocator", folder=Path.cwd()).code)

    monkeypatch.setattr(study, "subprocess", SimpleNamespace(run=run, DEVNULL=subprocess.DEVNULL))


def test_each_method_is_measured_on_the_same_rows_and_falls_are_paired(tiny_model: Path, tmp_path: Path) -> None:
    found = compared(recipe_of(tmp_path, tiny_model), tmp_path / "study")
    assert [outcome.kind for outcome in found.outcomes] == ["lora", "full"]
    lora, full = found.outcomes
    assert lora.base_loss == pytest.approx(full.base_loss)
    assert lora.steps == full.steps == 6
    assert lora.real_tokens == full.real_tokens > 0
    assert lora.num_trainable < full.num_trainable
    for outcome in found.outcomes:
        assert outcome.base_loss - outcome.loss == pytest.approx(outcome.fall)
        assert outcome.standard_error > 0
        assert outcome.standard_errors == pytest.approx(outcome.fall / outcome.standard_error)
        assert outcome.peak_memory_bytes > 10_000_000
    assert lora.fall > 0


@pytest.mark.usefixtures("within_this_process")
def test_what_is_finished_is_not_trained_again(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tmp_path, tiny_model)
    before = compared(recipe, tmp_path / "study", kinds=("lora",))
    trained: list[str] = []
    monkeypatch.setattr(study, "_train", lambda trial, announce: trained.append(trial.name))
    after = compared(recipe, tmp_path / "study", kinds=("lora",))
    assert trained == []
    assert after == before
    assert json.loads((tmp_path / "study" / RESULTS).read_text())["outcomes"][0]["kind"] == "lora"


@pytest.mark.usefixtures("within_this_process")
def test_a_budget_in_tokens_sets_the_steps_for_all_alike(tiny_model: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, tiny_model)
    found = compared(recipe, tmp_path / "study", kinds=("lora",), budget_tokens=600, seeds=2)
    assert [outcome.seed for outcome in found.outcomes] == [7, 8]
    for outcome in found.outcomes:
        a_step = outcome.real_tokens / outcome.steps
        assert abs(outcome.real_tokens - 600) <= a_step


@pytest.mark.usefixtures("within_this_process")
def test_a_run_that_fails_is_told_and_the_finished_ones_are_kept(tiny_model: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, tiny_model)
    broken = tmp_path / "study" / "full-seed-7"
    broken.mkdir(parents=True)
    (broken / "something").write_text("else")
    with pytest.raises(LuthierError, match="exit code") as caught:
        compared(recipe, tmp_path / "study")
    assert "kept" in caught.value.mend
    assert json.loads((tmp_path / "study" / RESULTS).read_text())["outcomes"][0]["kind"] == "lora"


def test_a_recipe_without_held_out_rows_is_refused_before_anything_trains(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds out no rows"):
        compared(recipe_of(tmp_path, tiny_model, data={"validation": "none"}), tmp_path / "study")
    assert not (tmp_path / "study").exists()


@pytest.mark.usefixtures("within_this_process")
def test_a_finished_run_is_not_taken_for_one_of_other_settings(tiny_model: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, tiny_model)
    compared(recipe, tmp_path / "study", kinds=("lora",))
    with pytest.raises(UsageError, match="other settings or another budget") as caught:
        compared(recipe, tmp_path / "study", kinds=("lora",), budget_tokens=300)
    assert "--out" in caught.value.mend


def test_the_report_has_a_line_a_method_and_a_picture(tmp_path: Path) -> None:
    outcomes = tuple(
        study.Outcome(kind, kind, 0, 10**power, 5, 900, 3.0, 2.5, 0.5, 0.1, 7.0, 10**9)
        for power, kind in enumerate(("lora", "full"), start=3)
    )
    write_comparison_report(MethodComparison(tmp_path, 10, outcomes, "squared error per text"))
    text = (tmp_path / REPORT).read_text()
    assert "the base model's loss is 3.0000 squared error per text (mean of the rows)" in text
    assert "| lora | 0 | 1,000 | 2.5000 | 0.5000 | 0.1000 | 5.0 | 7 | 1.00 |" in text
    assert f"({PLOT})" in text
    assert (tmp_path / PLOT).read_bytes().startswith(b"\x89PNG")


def test_no_spread_is_infinitely_many_standard_errors() -> None:
    assert math.isinf(study.Outcome("lora", "lora", 0, 1, 1, 1, 1.0, 0.5, 0.5, 0.0, 1.0, 1).standard_errors)


def test_published_scores_stand_beside_the_methods_that_have_some(tmp_path: Path) -> None:
    outcomes = tuple(
        study.Outcome(kind, kind, 0, 10, 5, 900, 3.0, 2.5, 0.5, 0.1, 7.0, 10**9) for kind in ("krona", "bitfit", "rows")
    )
    comparison = MethodComparison(tmp_path, 10, outcomes)
    write_comparison_report(comparison)
    published = (tmp_path / REPORT).read_text().partition("## Published")[2]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in published.splitlines() if "|" in line]
    assert lines[0] == [
        "method",
        "GLUE dev average, BERT-base",
        "GLUE dev average, DeBERTaV3-base",
        "GLUE average, T5-base",
    ]
    assert lines[2:] == [["krona", "", "", "86.14"], ["bitfit", "82.3", "86.2", ""]]
    assert [table["scores"]["krona"] for table in comparison.as_json()["published"] if "krona" in table["scores"]] == [
        86.14
    ]


def test_every_published_score_is_of_a_method_that_exists() -> None:
    kinds = {kind_of(method) for method in METHODS}
    assert all(set(table.scores) <= kinds for table in PUBLISHED)
    assert published_table(["rows"]) == []
