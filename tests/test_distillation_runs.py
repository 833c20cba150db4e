"""Runs that learn from another model: from a folder or a run, asked at each step or once, refused, resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_model import write_tiny_encoder_decoder, write_tiny_model
from tiny_runs import Cut, begin, course, cut_after, go_on, nothing, outcome, recipe_values, write_rows
from transformers import AutoConfig, AutoTokenizer

from luthier import api, companions, run
from luthier.errors import GateRefusal, LuthierError, RecipeError, RunMismatch
from luthier.planner.plan import Target, make_plan
from luthier.planner.request import imagined_rows
from luthier.recipe import load_recipe, make_recipe
from luthier.run import train_recipe
from luthier.store.rows import INDEX
from luthier.store.runs import RESOLVED
from luthier.studies.held_out import held_out_losses
from luthier.training.companions import FOLDER


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model and a larger one of the same words, rows, and a run that tuned the larger one."""
    desk = tmp_path_factory.mktemp("desk")
    write_tiny_model(desk / "small")
    write_tiny_model(desk / "large", hidden_size=48, num_hidden_layers=3, initializer_range=0.3)
    write_rows(desk / "rows.jsonl", 18)
    write_rows(desk / "held-out.jsonl", 5, start=100)
    begin(recipe_values(desk / "large", desk / "rows.jsonl", training={"steps": 12}), desk / "taught")
    return desk


@pytest.fixture(autouse=True)
def no_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plot takes longer than the training."""
    monkeypatch.setattr(run, "write_loss_plot", nothing_written)


def nothing_written(*_: object) -> None:
    """Write no plot."""


def values_of(desk: Path, teacher: str = "large", **parts: Any) -> dict[str, Any]:
    objective = {"kind": "distillation", "teacher": str(desk / teacher), **parts.pop("objective", {})}
    parts["data"] = {"validation": str(desk / "held-out.jsonl"), **parts.get("data", {})}
    return {**recipe_values(desk / "small", desk / "rows.jsonl", **parts), "objective": objective}


def never(*_: object) -> Any:
    raise AssertionError("the teacher was loaded")


@pytest.mark.parametrize(("teacher", "objective"), [("large", {}), ("taught", {"top_k": 8})], ids=["at hand", "kept"])
def test_a_student_comes_nearer_to_its_teacher(
    teacher: str, objective: dict[str, Any], desk: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    training = {"steps": 20, "evaluate_every": 5, "peak_lr": 0.01}
    method = {"kind": "full", "rank": None}
    values = values_of(desk, teacher, objective={"alpha": 0.0, **objective}, training=training, method=method)
    begin(values, tmp_path / "run", announce=said.append)
    losses = [line["validation_loss"] for line in course(tmp_path / "run") if "validation_loss" in line]
    assert losses[-1] < losses[0] - 0.03
    assert not (tmp_path / "run" / FOLDER).exists()
    assert any(sentence == f"The teacher is {desk / teacher}." for sentence in said)
    provenance = load_recipe(tmp_path / "run" / RESOLVED).provenance
    assert provenance is not None
    assert len(provenance.companions["teacher"]) == 64


def test_without_its_teacher_a_run_is_measured_by_the_plain_loss(desk: Path, tmp_path: Path) -> None:
    values = values_of(desk, objective={"alpha": 1.0}, training={"steps": 1, "evaluate_every": 1})
    begin(values, tmp_path / "run")
    (measure, *_) = api.evaluate(tmp_path / "run").measures
    assert measure.estimates[1].value == pytest.approx(course(tmp_path / "run")[-1]["validation_loss"], rel=1e-4)
    losses = held_out_losses(
        load_recipe(tmp_path / "run" / RESOLVED),
        {"base": (api.load_text(tmp_path / "run").language_model, None)},
        nothing,
    )
    assert losses is not None
    assert losses["base"] == pytest.approx(measure.estimates[0].value, rel=1e-4)


def test_a_run_teaches_otherwise_than_its_base(desk: Path, tmp_path: Path) -> None:
    for teacher in ("large", "taught"):
        begin(values_of(desk, teacher, training={"steps": 2}), tmp_path / teacher)
    first, second = (load_recipe(tmp_path / name / RESOLVED).provenance for name in ("large", "taught"))
    assert first is not None
    assert second is not None
    assert first.companions != second.companions
    assert course(tmp_path / "large")[0]["loss"] != course(tmp_path / "taught")[0]["loss"]


def test_a_run_that_tuned_its_weights_teaches_with_them(desk: Path, tmp_path: Path) -> None:
    tuned = recipe_values(
        desk / "large",
        desk / "rows.jsonl",
        method={"kind": "full", "rank": None},
        training={"steps": 2, "peak_lr": 1e-3},
    )
    begin(tuned, tmp_path / "teacher")
    values = values_of(desk, training={"steps": 2})
    values["objective"]["teacher"] = str(tmp_path / "teacher")
    begin(values, tmp_path / "run")
    values["objective"]["teacher"] = str(tmp_path / "teacher" / "model")
    begin(values, tmp_path / "again")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "again")


@pytest.mark.parametrize("objective", [{}, {"top_k": 8}], ids=["at hand", "kept"])
def test_a_run_that_is_resumed_ends_in_the_same_bits(
    objective: dict[str, Any], desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = values_of(desk, objective=objective, method={"dropout": 0.3}, training={"workers": 2})
    begin(values, tmp_path / "unbroken")
    with pytest.raises(Cut):
        begin(values, tmp_path / "broken", on_step=cut_after(3))
    if objective:  # what the teacher said is all there
        monkeypatch.setattr(companions, "load_companion", never)
    go_on(tmp_path / "broken")
    assert outcome(tmp_path / "broken") == outcome(tmp_path / "unbroken")


def test_a_run_that_died_while_it_asked_its_teacher_ends_in_the_same_bits(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = values_of(desk, objective={"top_k": 8})
    begin(values, tmp_path / "unbroken")

    def dies(*arguments: Any) -> None:
        ask(*arguments)
        raise Cut

    ask = companions.ask_once
    monkeypatch.setattr(companions, "ask_once", dies)
    with pytest.raises(Cut):
        begin(values, tmp_path / "broken")
    monkeypatch.undo()
    index = tmp_path / "broken" / FOLDER / "teacher" / INDEX
    index.write_text("".join(index.read_text().splitlines(keepends=True)[:7]))
    go_on(tmp_path / "broken")
    assert outcome(tmp_path / "broken") == outcome(tmp_path / "unbroken")


def test_another_teacher_than_the_one_it_began_with_is_refused(desk: Path, tmp_path: Path) -> None:
    shutil.copytree(desk / "large", tmp_path / "teacher")
    values = values_of(desk)
    values["objective"]["teacher"] = str(tmp_path / "teacher")
    with pytest.raises(Cut):
        begin(values, tmp_path / "run", on_step=cut_after(3))
    shutil.rmtree(tmp_path / "teacher")
    with pytest.raises(LuthierError) as lost:
        go_on(tmp_path / "run")
    assert lost.value.field == "objective.teacher"
    shutil.copytree(
        desk / "taught" / "..", tmp_path / "other", ignore=shutil.ignore_patterns("taught", "small", "*.jsonl")
    )
    write_tiny_model(tmp_path / "teacher", hidden_size=48)
    with pytest.raises(RunMismatch, match="The teacher is not what this run was begun with"):
        go_on(tmp_path / "run")


def test_words_kept_of_another_teacher_are_asked_again(desk: Path, tmp_path: Path) -> None:
    shutil.copytree(desk / "large", tmp_path / "teacher")
    values = values_of(desk, objective={"top_k": 8})
    values["objective"]["teacher"] = str(tmp_path / "teacher")
    with pytest.raises(Cut):
        begin(values, tmp_path / "run", on_step=cut_after(1))
    index = tmp_path / "run" / FOLDER / "teacher" / INDEX
    index.write_text("".join(index.read_text().splitlines(keepends=True)[:3]))
    write_tiny_model(tmp_path / "teacher", hidden_size=48)
    with pytest.raises(RunMismatch, match="The teacher is not"):
        go_on(tmp_path / "run")


def test_what_a_teacher_said_is_stored_for_other_students(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(values_of(desk, objective={"top_k": 8}), tmp_path / "alone")
    stored = {"top_k": 8, "stored": str(tmp_path / "said")}
    begin(values_of(desk, objective=stored), tmp_path / "first")
    monkeypatch.setattr(companions, "load_companion", never)
    said: list[str] = []
    begin(values_of(desk, objective=stored), tmp_path / "second", announce=said.append)
    losses = [[line["loss"] for line in course(tmp_path / name)] for name in ("alone", "first", "second")]
    assert losses[0] == losses[1] == losses[2]
    assert any("kept from before; it is not loaded" in sentence for sentence in said)
    wider = values_of(desk, objective=stored, method={"rank": 6})
    begin(wider, tmp_path / "wider")
    assert course(tmp_path / "wider")[0]["loss"] == losses[0][0]  # LoRA begins where the base is


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"objective": {"top_k": 7}}, "objective.top_k"),
        ({"objective": {"temperature": 2.0}}, "objective.temperature"),
        ({"data": {"max_length": 60, "too_long": "truncate"}}, "other rows"),
    ],
    ids=["top_k", "temperature", "rows"],
)
def test_what_is_stored_of_something_else_is_refused_and_stays(
    changed: dict[str, Any], told: str, desk: Path, tmp_path: Path
) -> None:
    stored = {"top_k": 8, "stored": str(tmp_path / "said")}
    begin(values_of(desk, objective=stored, training={"steps": 1}), tmp_path / "first")
    before = {path.name: path.read_bytes() for path in (tmp_path / "said").iterdir()}
    parts = {**changed, "objective": {**stored, **changed.get("objective", {})}}
    with pytest.raises(RecipeError) as refused:
        begin(values_of(desk, **parts), tmp_path / "second")
    assert told in refused.value.found
    assert refused.value.field == "objective.stored"
    assert {path.name: path.read_bytes() for path in (tmp_path / "said").iterdir()} == before


def test_a_folder_of_something_else_is_no_place_to_store(desk: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RecipeError, match="something else"):
        begin(values_of(desk, objective={"top_k": 8, "stored": str(tmp_path)}), tmp_path.parent / "stored-run")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(LuthierError, match="not stored"):
        make_recipe(values_of(desk, objective={"stored": str(tmp_path)}))


def test_an_encoder_decoder_learns_from_another(desk: Path, tmp_path: Path) -> None:
    for name in ("student", "teacher"):
        write_tiny_encoder_decoder(tmp_path / name, "t5")
    values = values_of(desk, objective={"alpha": 0.2, "direction": "jsd"})
    values["model"] = str(tmp_path / "student")
    values["objective"]["teacher"] = str(tmp_path / "teacher")
    begin(values, tmp_path / "run")
    assert len(course(tmp_path / "run")) == 6


# ── refusals ────────────────────────────────────────────────────────────────────────────────────────────────────────


def other_words(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)


def writes_nothing(folder: Path) -> None:
    recipe = folder / RESOLVED
    values = yaml.safe_load(recipe.read_text())
    recipe.write_text(
        yaml.safe_dump({**values, "objective": {"kind": "embedding"}, "data": {"train": "x/y", "max_length": 64}})
    )


def short_sighted(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 16}))


@pytest.mark.parametrize(
    ("teacher", "spoil", "objective", "error", "found"),
    [
        ("large", other_words, {}, RecipeError, "'<new>' has number .* there and none here"),
        ("large", short_sighted, {}, GateRefusal, "positions serve 16"),
        ("large", lambda folder: None, {"top_k": 5000}, RecipeError, "none would be left out"),
        ("large", shutil.rmtree, {}, LuthierError, "teacher"),
    ],
    ids=["words", "positions", "top_k", "nowhere"],
)
def test_what_cannot_teach_is_refused_before_anything_is_loaded(
    teacher: str,
    spoil: Callable[[Path], Any],
    objective: dict[str, Any],
    error: type[LuthierError],
    found: str,
    desk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(desk / teacher, tmp_path / "teacher")
    spoil(tmp_path / "teacher")
    values = values_of(desk, objective=objective)
    values["objective"]["teacher"] = str(tmp_path / "teacher")
    monkeypatch.setattr(companions, "load_companion", never)
    with pytest.raises(error, match=found) as refused:
        begin(values, tmp_path / "run")
    assert refused.value.mend
    assert refused.value.field in ("objective.teacher", "objective.top_k", None)


def test_a_teacher_of_another_kind_is_refused(desk: Path, tmp_path: Path) -> None:
    write_tiny_encoder_decoder(tmp_path / "teacher", "t5")
    values = values_of(desk)
    values["objective"]["teacher"] = str(tmp_path / "teacher")
    with pytest.raises(RecipeError, match="of the kind encoder-decoder") as refused:
        begin(values, tmp_path / "run")
    assert refused.value.field == "objective.teacher"


def test_a_run_that_learned_no_writing_cannot_teach(desk: Path, tmp_path: Path) -> None:
    shutil.copytree(desk / "taught", tmp_path / "teacher")
    writes_nothing(tmp_path / "teacher")
    values = values_of(desk)
    values["objective"]["teacher"] = str(tmp_path / "teacher")
    with pytest.raises(RecipeError, match="writes no text"):
        begin(values, tmp_path / "run")


def test_the_path_of_a_teacher_is_looked_for_beside_the_recipe(desk: Path) -> None:
    text = "model: small\ndata: {train: rows.jsonl}\nobjective: {kind: distillation, teacher: large}\n"
    (desk / "recipe.yaml").write_text(text)
    recipe = load_recipe(desk / "recipe.yaml")
    assert recipe.objective.companions[0].model.name == str(desk / "large")
    named = make_recipe({**values_of(desk), "objective": {"kind": "distillation", "teacher": "smollm2-135m"}})
    assert named.objective.companions[0].model.name == "smollm2-135m"


def test_a_run_with_a_teacher_is_planned(desk: Path, tmp_path: Path) -> None:
    recipe = make_recipe(values_of(desk))
    train_recipe(recipe, tmp_path / "run", announce=nothing, on_step=nothing, plans=True)
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    weights = (desk / "large" / "model.safetensors").stat().st_size
    assert plan["parts"]["other models"] == pytest.approx(weights, rel=0.05)


def test_what_is_kept_of_a_teacher_is_planned(desk: Path) -> None:
    recipe, config = make_recipe(values_of(desk, objective={"top_k": 8})), AutoConfig.from_pretrained(desk / "small")
    rows = imagined_rows(recipe, config)
    plan = make_plan(recipe, config, rows, Target(torch.device("cpu"), 10**12))
    learned = sum(row.num_learned for row in rows.examples)
    assert plan.disk_bytes["words of other models"] == learned * (8 * 4 + 9 * 4)
    assert plan.seconds is None
    timed = make_plan(make_recipe(values_of(desk)), config, rows, Target(torch.device("cpu"), 10**12), untimed=None)
    assert timed.seconds is not None
    assert timed.seconds > 0
