"""Runs that learn which answers are better: what they write down, where they start, and that they go on to the same bits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tiny_model import write_tiny_encoder_decoder, write_tiny_model
from tiny_runs import Cut, begin, course, cut_after, go_on, nothing, outcome, recipe_values

from luthier import api, run
from luthier.errors import DataError, RecipeError
from luthier.recipe import make_recipe
from luthier.run import train_recipe
from luthier.store.files import read_json
from luthier.store.runs import PLAN
from luthier.training.companions import FOLDER

PAIRED = ("reward_accuracy", "reward_margin", "chosen_reward", "rejected_reward", "chosen_logprob", "rejected_logprob")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def pairs(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"prompt": f"Where is order {n}?", "chosen": f"Order {n} is on its way.", "rejected": "No idea" + "!" * (n % 3)}
        for n in range(start, start + count)
    ]


def verdicts(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"Where is order {n}?",
            "completion": f"Order {n} is {'here' if n % 2 else 'lost'}.",
            "label": n % 2 == 1,
        }
        for n in range(start, start + count)
    ]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and rows of both kinds, held-out ones too."""
    desk = tmp_path_factory.mktemp("desk")
    write_tiny_model(desk / "model")
    for name, rows in (("pairs", pairs), ("verdicts", verdicts)):
        write_lines(desk / f"{name}.jsonl", rows(14))
        write_lines(desk / f"{name}-held-out.jsonl", rows(5, 100))
    return desk


@pytest.fixture(autouse=True)
def no_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plot takes longer than the training."""
    monkeypatch.setattr(run, "write_loss_plot", lambda *arguments: None)


def values_of(desk: Path, kind: str, objective: dict[str, Any] | None = None, **parts: Any) -> dict[str, Any]:
    rows = "verdicts" if kind == "kto" else "pairs"
    parts["data"] = {"validation": str(desk / f"{rows}-held-out.jsonl"), "max_length": 96}
    parts["training"] = {"evaluate_every": 3, **parts.get("training", {})}
    values = recipe_values(desk / "model", desk / f"{rows}.jsonl", **parts)
    return {**values, "objective": {"kind": kind, **(objective or {})}}


@pytest.mark.parametrize("method", [{}, {"kind": "full", "rank": None}], ids=["lora", "full"])
@pytest.mark.parametrize(("kind", "start"), [("dpo", math.log(2)), ("kto", 0.5)])
def test_a_run_starts_where_policy_and_reference_are_one_and_parts_them(
    kind: str, start: float, method: dict[str, Any], desk: Path, tmp_path: Path
) -> None:
    begin(values_of(desk, kind, {"beta": 0.5}, method=method, training={"steps": 24, "workers": 2}), tmp_path / "run")
    lines = course(tmp_path / "run")
    assert lines[0]["loss"] == pytest.approx(start, abs=1e-5)
    for name in ("kl", "chosen_reward", "rejected_reward"):
        assert lines[0][name] == pytest.approx(0, abs=1e-5)
    assert lines[-1]["loss"] < start - 0.02
    assert lines[-1]["reward_accuracy"] > 0.5
    held_out = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert held_out[-1] < held_out[0]
    assert not (tmp_path / "run" / FOLDER).exists()


@pytest.mark.parametrize("kind", ["dpo", "orpo", "simpo", "cpo"])
def test_what_pairs_come_to_is_written_down(kind: str, desk: Path, tmp_path: Path) -> None:
    begin(values_of(desk, kind, training={"steps": 2, "peak_lr": None}), tmp_path / "run")
    for line in course(tmp_path / "run"):
        assert set(PAIRED) <= set(line)
        assert ("kl" in line) == (kind == "dpo")
        assert line["reward_margin"] == pytest.approx(line["chosen_reward"] - line["rejected_reward"], abs=1e-4)


RESUMED: dict[str, dict[str, Any]] = {
    "lora": {},
    "full": {"method": {"kind": "full", "rank": None}, "training": {"peak_lr": 0.001}},
    "virtual tokens": {"method": {"kind": "prompt-tuning", "rank": None, "num_virtual_tokens": 3}},
    "kto": {"training": {"workers": 2}},
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_that_is_resumed_ends_in_the_same_bits(name: str, desk: Path, tmp_path: Path) -> None:
    values = values_of(desk, "kto" if name == "kto" else "dpo", **RESUMED[name])
    begin(values, tmp_path / "unbroken")
    with pytest.raises(Cut):
        begin(values, tmp_path / "broken", on_step=cut_after(3))
    go_on(tmp_path / "broken")
    assert outcome(tmp_path / "broken") == outcome(tmp_path / "unbroken")


def test_a_run_that_goes_on_from_another_has_that_as_its_reference(desk: Path, tmp_path: Path) -> None:
    said: list[str] = []
    begin(values_of(desk, "simpo"), tmp_path / "first")
    values = values_of(desk, "dpo", method={"from": str(tmp_path / "first"), "rank": None})
    begin(values, tmp_path / "second", announce=said.append)
    assert course(tmp_path / "second")[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert any("a frozen copy of what it begins with" in sentence for sentence in said)


def test_shared_prompts_are_computed_once(desk: Path, tmp_path: Path) -> None:
    begin(values_of(desk, "dpo", training={"steps": 1, "rows_per_step": 14}), tmp_path / "dpo")
    begin({**values_of(desk, "simpo", training={"steps": 1, "rows_per_step": 14})}, tmp_path / "simpo")
    (line,) = course(tmp_path / "dpo")
    assert line["real_tokens"] == course(tmp_path / "simpo")[0]["real_tokens"]
    assert line["learned_tokens"] > 0.4 * line["real_tokens"]  # prompts twice would make it a quarter


@pytest.mark.parametrize("method", [{}, {"kind": "full", "rank": None}], ids=["lora", "full"])
def test_such_a_run_is_planned(method: dict[str, Any], desk: Path, tmp_path: Path) -> None:
    recipe = make_recipe(values_of(desk, "dpo", method=method, training={"steps": 1}))
    train_recipe(recipe, tmp_path / "run", announce=nothing, on_step=nothing, plans=True)
    assert read_json(tmp_path / "run" / PLAN)["verdict"] == "fits"


def test_rows_without_pairs_and_pairs_without_a_difference_are_refused(desk: Path, tmp_path: Path) -> None:
    values = values_of(desk, "dpo")
    values["data"] = {**values["data"], "train": str(desk / "verdicts.jsonl")}
    with pytest.raises(DataError, match="no pairs of a better and a worse answer"):
        begin(values, tmp_path / "run")
    write_lines(desk / "same.jsonl", [{**row, "rejected": row["chosen"]} for row in pairs(3)])
    values["data"]["train"] = str(desk / "same.jsonl")
    with pytest.raises(DataError) as refused:
        begin(values, tmp_path / "run")
    assert refused.value.line == 1


def test_encoder_decoders_are_refused(desk: Path, tmp_path: Path) -> None:

    write_tiny_encoder_decoder(tmp_path / "t5", "t5")
    values = {**values_of(desk, "dpo"), "model": str(tmp_path / "t5")}
    with pytest.raises(RecipeError, match="is for models of the kind decoder"):
        begin(values, tmp_path / "run")


def test_base_and_tuned_are_measured_by_which_answers_they_find_likelier(desk: Path, tmp_path: Path) -> None:
    begin(values_of(desk, "dpo", {"beta": 0.5}, training={"steps": 24}), tmp_path / "run")
    found = api.evaluate(tmp_path / "run")
    assert [measure.name for measure in found.measures] == [
        "accuracy", "accuracy by the token", "implicit accuracy", "margin",
    ]  # fmt: skip
    base, tuned = (estimate.value for estimate in found.measures[3].estimates)
    implicit = found.measures[2].estimates
    assert implicit[0].value == 0.5
    assert implicit[1].value > 0.5, "tuning moved most margins the right way, as the loss says that it did"
    last = course(tmp_path / "run")[-1]
    assert tuned > base
    assert found.measures[0].estimates[1].value >= found.measures[0].estimates[0].value
    again = api.evaluate(tmp_path / "run", str(desk / "pairs-held-out.jsonl"))
    assert again.measures[3].estimates[1].value == pytest.approx(tuned, rel=1e-5)
    beside = api.evaluate(tmp_path / "run", also=[f"{tmp_path / 'run'}@24", str(desk / "model")])
    assert beside.candidates == ("base", "tuned", f"{tmp_path / 'run'}@24", str(desk / "model"))
    assert [estimate.value for estimate in beside.measures[3].estimates] == pytest.approx([base, tuned, tuned, base])
    gains = tuned - base  # on held-out rows, of which the held-out loss is a function
    assert last["validation_loss"] >= math.log1p(math.exp(-0.5 * gains)) - 1e-4, "Jensen"


def test_base_and_tuned_are_measured_by_what_they_think_of_good_and_bad_answers(desk: Path, tmp_path: Path) -> None:
    begin(values_of(desk, "kto", {"beta": 0.5}, training={"steps": 24}), tmp_path / "run")
    good, bad = api.evaluate(tmp_path / "run").measures
    assert (good.name, bad.name) == ("loss of good answers", "loss of bad answers")
    assert good.num_rows + bad.num_rows == 5
    gap = [bad.estimates[index].value - good.estimates[index].value for index in (0, 1)]
    assert gap[1] > gap[0]
