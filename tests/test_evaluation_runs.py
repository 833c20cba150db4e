"""Runs that are evaluated: what is compared with what, and what comes out of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import begin, nothing, recipe_values, write_rows

from bench.verdict import KINDS, LARGER_KINDS, kinds_for, verdict_of
from bench.verdict import main as verdict_bench
from luthier import api
from luthier.cli.main import main
from luthier.errors import CheckpointNotFound, DataError, NotFinite, RecipeError, UsageError
from luthier.evaluation.shots import with_shots
from luthier.generation.settings import Sampling
from luthier.types import Completion, Conversation, Message
from luthier.version import __version__

SHORT = Sampling(max_new_tokens=4)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with a run, and its rows; the last held-out rows are training rows, one with a word changed in case."""
    desk = tmp_path_factory.mktemp("desk")
    rows = write_rows(desk / "rows.jsonl", 24).read_text().splitlines()
    held_out = write_rows(desk / "held-out.jsonl", 10, start=40)
    held_out.write_text(held_out.read_text() + rows[0] + "\n" + rows[1].replace("Where", "WHERE") + "\n")
    values = recipe_values(tiny_model, desk / "rows.jsonl", data={"validation": str(held_out)}, training={"steps": 4})
    begin(values, desk / "run")
    return desk


def test_a_run_is_measured_beside_the_base_with_shots_a_checkpoint_and_its_own_kind(desk: Path) -> None:
    also = [f"{desk / 'run'}@3", str(desk / "run")]
    evaluation = api.evaluate(desk / "run", sampling=SHORT, shots=2, also=also, metrics=["chrf"], probes=True)
    assert evaluation.candidates == ("base", "base, 2 shots", "tuned", *also)
    assert evaluation.subject == "tuned"
    loss = evaluation.measures[0]
    base, shown, tuned, earlier, again = (estimate.value for estimate in loss.estimates)
    assert tuned == again
    assert len({base, shown, tuned, earlier}) == 4
    assert tuned < earlier < base
    assert evaluation.measures[-1].name == "chrf"
    for name in also:
        assert sum(f"in the training rows of {name}, 2 word for word" in note for note in evaluation.notes) == 1
    probe = evaluation.forgetting
    assert probe is not None
    assert [part.name for part in probe.parts] == ["general text", "general instructions", "general questions"]
    assert probe.parts[0].estimates[0] == probe.parts[0].estimates[1]  # examples shown first change no model
    assert probe.parts[0].estimates[0] != probe.parts[0].estimates[2]


def test_rows_that_were_learned_are_told(desk: Path) -> None:
    found = api.evaluate(desk / "run", sampling=SHORT).contamination
    assert found is not None
    assert (found.num_rows, found.num_trained, found.exact, found.near) == (12, 24, (10, 11), ())
    assert api.evaluate(desk / "run", sampling=SHORT, limit=10).contamination.note is None  # type: ignore[union-attr]


def test_the_command_gives_verdict_metrics_intervals_and_forgetting(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (desk / "mine.py").write_text("def metric(row, answer):\n    return len(answer) + len(row['prompt'])\n")
    words = [
        "evaluate",
        str(desk / "run"),
        "--max-new-tokens",
        "4",
        "--metric",
        "accuracy",
        "--metric",
        str(desk / "mine.py"),
    ]
    assert main([*words, "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert document["verdict"] == document["verdicts"]["tuned"]["verdict"]
    assert set(document["metrics"]) == set(document["intervals"]) >= {"loss", "ROUGE-L", "accuracy", "mine"}
    low, high = document["intervals"]["loss"]["tuned - base"]
    assert low <= document["metrics"]["loss"]["tuned"] - document["metrics"]["loss"]["base"] <= high
    assert document["forgetting"]["verdicts"]["tuned"] in ("kept", "unclear", "forgot")
    assert set(document["forgetting"]["metrics"]["general text"]) == {"base", "tuned"}
    assert document["contamination"]["exact"] == [10, 11]
    assert main([*words, "--no-forgetting"]) == 0
    printed = capsys.readouterr().out
    assert document["verdicts"]["tuned"]["sentence"].split(":")[0] in printed
    assert "general text" not in printed


def test_what_cannot_be_compared_is_refused(desk: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound, match="step 1"):
        api.evaluate(desk / "run", sampling=SHORT, also=[f"{desk / 'run'}@1"])
    with pytest.raises(UsageError, match="no metric 'best'"):
        api.evaluate(desk / "run", sampling=SHORT, metrics=["best"])
    with pytest.raises(UsageError, match="examples to show, and 99 are wanted"):
        api.evaluate(desk / "run", sampling=SHORT, shots=99)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="the file is empty"):
        api.evaluate(desk / "run", str(tmp_path / "empty.jsonl"), sampling=SHORT)


def test_a_prompt_too_long_for_its_shots_says_that_fewer_can_be_shown(desk: Path, tmp_path: Path) -> None:
    context = api.load(desk / "run").language_model.context_length
    assert context is not None
    long = {"prompt": "Where? " * (context // 8), "completion": "here"}
    (tmp_path / "long.jsonl").write_text(json.dumps(long) + "\n")
    with pytest.raises(DataError, match="the model holds") as caught:
        api.evaluate(desk / "run", str(tmp_path / "long.jsonl"), sampling=SHORT, shots=20)
    assert "--shots" in caught.value.mend
    (tmp_path / "longer.jsonl").write_text(json.dumps({**long, "prompt": "Where? " * context}) + "\n")
    with pytest.raises(DataError, match="the model holds") as caught:
        api.evaluate(desk / "run", str(tmp_path / "longer.jsonl"), sampling=SHORT)
    assert "--shots" not in caught.value.mend


def test_a_model_that_gives_nan_is_told_with_the_row(desk: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(desk / "run", broken)
    weights = broken / "adapter" / "adapter_model.safetensors"
    save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in load_file(weights).items()}, weights)
    with pytest.raises(NotFinite, match=r"held-out\.jsonl, line 1.*NaN for this row \(tuned: loss\)"):
        api.evaluate(broken, sampling=SHORT)


def test_a_run_of_another_version_that_cannot_be_read_names_the_version(desk: Path, tmp_path: Path) -> None:
    newer = tmp_path / "newer"
    shutil.copytree(desk / "run", newer)
    recipe = newer / "recipe.resolved.yaml"
    made = f"luthier: {__version__}"
    assert made in recipe.read_text()
    recipe.write_text(recipe.read_text().replace(made, "luthier: 99.0.0") + "future: 1\n")
    with pytest.raises(RecipeError, match="future") as caught:
        api.evaluate(newer, sampling=SHORT)
    assert "made by luthier 99.0.0" in caught.value.mend


def test_shots_are_earlier_turns_in_a_chat_and_come_before_a_plain_prompt(desk: Path) -> None:
    renderer = api.load_text(desk / "run", nothing).renderer
    system, asked, said = Message("system", "Be brief."), Message("user", "b?"), Message("assistant", "B")
    row = with_shots(Conversation((system, asked, said)), [Completion("a?", "A")], renderer)
    assert isinstance(row, Conversation)
    assert [(m.role, m.content, m.learn) for m in row.messages] == [
        ("system", "Be brief.", None), ("user", "a?", False), ("assistant", "A", False), ("user", "b?", None),
        ("assistant", "B", None),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_the_verdict_on_a_run_of_which_it_is_known_is_right(name: str, shared_data: Path, tmp_path: Path) -> None:
    verdict, sentence = verdict_of(KINDS[name], 0, str(shared_data / "stories260k_llama"), tmp_path / name)
    assert verdict == KINDS[name].expected, sentence


@pytest.mark.slow
def test_the_bench_of_verdicts_takes_any_model_and_then_its_kinds_for_larger_ones(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = shared_data / "stories260k_llama"
    assert kinds_for("smollm2-135m") is LARGER_KINDS
    assert kinds_for(str(small)) is KINDS
    shutil.copytree(small, tmp_path / "any")
    assert kinds_for(str(tmp_path / "any")) is LARGER_KINDS
    assert verdict_bench(["--model", str(tmp_path / "any"), "--seeds", "1", "--kinds", "gentle", "no-op"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("1 of 1") == 2
