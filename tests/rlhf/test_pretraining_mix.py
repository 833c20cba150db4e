"""PPO-ptx: texts of pre-training beside the rollouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import write_tiny_model
from tiny_runs import Cut, begin, course, cut_after, go_on, one_thread, outcome, recipe_values
from torch import Tensor

from luthier.errors import DataError, NotFound, RecipeError, RunMismatch
from luthier.training.checkpoint import load_checkpoint

TEXTS = (
    "The rain fell on the town all night.",
    "A ship came in.",
    "Bread is made of flour, water and salt, and of time.",
)
FULL = {"kind": "full", "rank": None}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, prompts, and texts."""
    desk = tmp_path_factory.mktemp("desk")
    write_tiny_model(desk / "model")
    (desk / "rows.jsonl").write_text("".join(json.dumps({"prompt": f"Say {number}"}) + "\n" for number in range(8)))
    (desk / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return desk


def values_of(desk: Path, pretraining: dict[str, Any] | None, **parts: Any) -> dict[str, Any]:
    parts["training"] = {
        "rows_per_step": 2,
        "tokens_per_micro_batch": 128,
        "clip_norm": 1e9,
        **parts.get("training", {}),
    }
    parts["data"] = {"max_length": 64}
    values = recipe_values(desk / "model", desk / "rows.jsonl", **parts)
    objective = {
        "kind": "ppo", "rewards": [{"grader": {"type": "length", "most": 20, "margin": 20}}], "max_new_tokens": 6, "reuse": 1,
        "temperature": 0.7, **({} if pretraining is None else {"pretraining": pretraining}),
    }  # fmt: skip
    return {**values, "objective": objective}


def gradients(folder: Path) -> dict[str, Tensor]:
    """Those of a run's only step, by name: AdamW's first moment over 1 − β₁."""
    checkpoint = load_checkpoint(folder)
    state = checkpoint.optimizer.items()
    return {key.removeprefix("exp_avg."): moment / 0.1 for key, moment in state if key.startswith("exp_avg.")}


def test_the_gradient_is_ppos_and_the_weight_times_that_of_the_texts(desk: Path, tmp_path: Path) -> None:
    one_step = {"steps": 1, "checkpoint_every": 1}
    texts = {"data": str(desk / "texts.jsonl"), "weight": 3.0, "rows_per_step": len(TEXTS)}
    begin(values_of(desk, None, method=FULL, training=one_step), tmp_path / "ppo")
    begin(values_of(desk, texts, method=FULL, training=one_step), tmp_path / "mixed")
    small = {**one_step, "tokens_per_micro_batch": 64}
    begin(values_of(desk, texts, method=FULL, training=small), tmp_path / "small")
    alone = recipe_values(
        desk / "model", desk / "texts.jsonl", method=FULL, data={"max_length": 64},
        training={**one_step, "rows_per_step": len(TEXTS), "tokens_per_micro_batch": 128, "clip_norm": 1e9},
    )  # fmt: skip
    begin({**alone, "objective": {"kind": "clm"}}, tmp_path / "clm")
    ppo, mixed, cut, clm = (gradients(tmp_path / name) for name in ("ppo", "mixed", "small", "clm"))
    assert clm
    for name, of_ppo in ppo.items():
        added = 3.0 * clm[name] if name in clm else torch.zeros_like(of_ppo)  # the critic learns nothing of texts
        largest = float(added.abs().max() + of_ppo.abs().max())
        torch.testing.assert_close(mixed[name], of_ppo + added, rtol=1e-4, atol=1e-5 * largest)
        torch.testing.assert_close(cut[name], mixed[name], rtol=1e-4, atol=1e-5 * largest)
    (line,), (said,) = course(tmp_path / "mixed"), course(tmp_path / "clm")
    assert line["pretraining_loss"] == pytest.approx(said["loss"], rel=1e-5)
    assert line["loss"] == pytest.approx(course(tmp_path / "ppo")[0]["loss"] + 3 * said["loss"], rel=1e-4)


def test_a_run_with_texts_that_dies_goes_on_to_the_same_bits(desk: Path, tmp_path: Path) -> None:
    values = values_of(desk, {"data": str(desk / "texts.jsonl"), "weight": 0.5})
    with one_thread():
        begin(values, tmp_path / "whole")
        with pytest.raises(Cut):
            begin(values, tmp_path / "cut", cut_after(3))
        go_on(tmp_path / "cut")
        assert outcome(tmp_path / "cut")[0] == outcome(tmp_path / "whole")[0]


def test_texts_that_have_changed_are_not_gone_on_with(desk: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text((desk / "texts.jsonl").read_text())
    with pytest.raises(Cut):
        begin(values_of(desk, {"data": str(texts)}), tmp_path / "run", cut_after(3))
    texts.write_text(json.dumps({"text": "Something else."}) + "\n")
    with pytest.raises(RunMismatch, match="pretraining"):
        go_on(tmp_path / "run")


def test_texts_that_are_not_there_are_told_before_anything_is_trained(desk: Path, tmp_path: Path) -> None:
    with pytest.raises((NotFound, RecipeError)) as caught:
        begin(values_of(desk, {"data": "nowhere.jsonl"}), tmp_path / "run")
    assert "nowhere.jsonl" in str(caught.value)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError) as found:
        begin(values_of(desk, {"data": str(tmp_path / "empty.jsonl")}), tmp_path / "other")
    assert found.value.field == "objective.pretraining.data"
