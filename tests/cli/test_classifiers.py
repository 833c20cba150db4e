"""The commands on a run that tells classes apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from program import within
from tiny_model import write_tiny_encoder

RECIPE = """model: encoder
data: {train: rows.jsonl, max_length: 64}
objective: {kind: classification}
training: {steps: 4, rows_per_step: 8, tokens_per_micro_batch: 256, workers: 1, peak_lr: 0.01}
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder in which `luthier train recipe.yaml --out run` has run."""
    desk = tmp_path_factory.mktemp("desk")
    write_tiny_encoder(desk / "encoder")
    rows = [{"text": f"Parcel {i} is {('here', 'late')[i % 2]}.", "label": i % 2} for i in range(40)]
    (desk / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (desk / "recipe.yaml").write_text(RECIPE)
    ended = within("train", "recipe.yaml", "--out", "run", "--plain-allocator", folder=desk)
    assert ended.code == 0, ended.err
    assert "labels will be learned" in ended.err
    assert "luthier generate run --prompt TEXT" in ended.err
    return desk


def test_check_shows_texts_with_their_labels(desk: Path) -> None:
    ended = within("check", "recipe.yaml", folder=desk)
    assert ended.code == 0, ended.err
    assert "[CLS]Parcel" in ended.out
    assert "→ ⟦" in ended.out
    assert "labels: " in ended.out
    document = within("check", "recipe.yaml", "--json", folder=desk).document["gate"]
    assert sum(document["classes"].values()) == document["rows"]


def test_check_names_a_row_at_fault(desk: Path) -> None:
    (desk / "bad.jsonl").write_text('{"text": "a", "label": 0}\n{"text": "", "label": 1}\n')
    ended = within("check", "recipe.yaml", "--set", "data.train=bad.jsonl", folder=desk)
    assert ended.code == 3
    assert "bad.jsonl, line 2" in ended.err


def test_evaluate_compares_with_the_majority(desk: Path) -> None:
    ended = within("evaluate", "run", "--data", "rows.jsonl", "--limit", "12", folder=desk)
    assert ended.code == 0, ended.err
    assert "macro-F1" in ended.out
    assert "majority always answers" in ended.out


def test_generate_prints_the_label_and_the_probabilities(desk: Path) -> None:
    ended = within("generate", "run", "--prompt", "Parcel 3 is late.", "--prompt", "Parcel 4 is here.", folder=desk)
    assert ended.code == 0, ended.err
    assert len(ended.out.splitlines()) == 2
    answers = within("generate", "run", "--prompt", "Parcel 3 is late.", "--json", folder=desk).document["answers"]
    assert answers[0]["label"] == max(answers[0]["probabilities"], key=answers[0]["probabilities"].get)
    assert set(answers[0]["probabilities"]) == {"0", "1"}
    assert ended.out.startswith(answers[0]["label"] + " (")


@pytest.mark.parametrize("option", [["--base"], ["--temperature", "1"], ["--system", "Be kind."]])
def test_generate_refuses_what_a_classifier_does_not_do(option: list[str], desk: Path) -> None:
    ended = within("generate", "run", "--prompt", "a", *option, folder=desk)
    assert ended.code == 2
    assert "Leave out all options but --prompt" in ended.err


def test_chat_is_refused_with_the_mend(desk: Path) -> None:
    ended = within("chat", "run", folder=desk, given="hello\n")
    assert ended.code == 2
    assert "luthier generate run --prompt" in ended.err
