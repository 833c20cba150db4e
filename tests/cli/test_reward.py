"""The commands on a reward model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from program import luthier
from tiny_model import write_tiny_model

RECIPE = """model: model
data: {train: pairs.jsonl, max_length: 64}
objective: {kind: reward}
training: {steps: 4, rows_per_step: 8, tokens_per_micro_batch: 256, workers: 1, peak_lr: 0.01}
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder in which `luthier train recipe.yaml --out run` has run."""
    desk = tmp_path_factory.mktemp("desk")
    write_tiny_model(desk / "model")
    rows = [{"prompt": f"Where is {n}?", "chosen": f"It is at {n}.", "rejected": "No idea!"} for n in range(40)]
    (desk / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (desk / "recipe.yaml").write_text(RECIPE)
    ended = luthier("train", "recipe.yaml", "--out", "run", folder=desk)
    assert ended.code == 0, ended.err
    assert "--prompt QUESTION --option ANSWER" in ended.err
    return desk


def test_evaluate_shows_what_the_scores_are_like_and_draws_it(desk: Path) -> None:
    ended = luthier("evaluate", "run", "--plot", "reward.png", folder=desk)
    assert ended.code == 0, ended.err
    for title in ("accuracy", "Calibration", "Margins", "Length", "position"):
        assert title in ended.out
    assert (desk / "reward.png").stat().st_size > 1000


def test_generate_scores_the_options(desk: Path) -> None:
    ended = luthier(
        "generate", "run", "--prompt", "Where is 3?", "--option", "Here.", "--option", "No!", "--json", folder=desk
    )
    assert ended.code == 0, ended.err
    (answer,) = ended.document["answers"]
    assert [each["option"] for each in answer["scores"]] == ["Here.", "No!"]
