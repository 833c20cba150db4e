"""DPO in folds: every pair is held out once, none beside another of its prompt, and the bench runs to its end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_model import write_tiny_model

from bench import folds


def pairs(count: int) -> list[dict[str, object]]:
    return [
        {
            "conversations": [{"from": "human", "value": f"Where is {number // 2}?"}],
            "chosen": {"from": "gpt", "value": f"Here, at {number}."},
            "rejected": {"from": "gpt", "value": "No" + "!" * (1 + number % 3)},
        }
        for number in range(count)
    ]


def test_folds_hold_every_row_once_and_keep_prompts_together() -> None:
    parts = folds.folds_of(pairs(20), 5)
    assert sorted(row["chosen"]["value"] for part in parts for row in part) == sorted(
        row["chosen"]["value"] for row in pairs(20)
    )
    asked = [{row["conversations"][0]["value"] for row in part} for part in parts]
    assert all(not one & other for at, one in enumerate(asked) for other in asked[:at])
    assert {len(part) for part in parts} == {4}


@pytest.mark.slow
def test_the_bench_runs_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(folds, "FOLDS", 2)
    write_tiny_model(tmp_path / "model")
    (tmp_path / "pairs.json").write_text(json.dumps(pairs(12)))
    words = [
        "--model",
        str(tmp_path / "model"),
        "--data",
        str(tmp_path / "pairs.json"),
        "--results",
        str(tmp_path / "out"),
    ]
    assert folds.main([*words, "--max-length", "128", "--epochs", "12", "--peak-lr", "0.02", "--json"]) in (0, 1)
    document = json.loads(capsys.readouterr().out)
    assert [fold["rows"] for fold in document["folds"]] == [6, 6]
    assert document["implicit_accuracy"]["low"] <= document["implicit_accuracy"]["value"] <= 1
    assert document["kl"] > 0, "a policy that moved is some way from where it began"
