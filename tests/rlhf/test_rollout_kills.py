"""Real processes that learn from rewards, killed while they write answers, while these are scored, and while they learn."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import end_of, last_step, signal_at, start
from rollout_desk import VOWELS, write_desk
from tiny_runs import begin, course, one_thread, outcome, recipe_values

from luthier.rlhf.kept import FOLDER

pytestmark = pytest.mark.slow

SLOWLY = "import time\n" + VOWELS.replace("return", "time.sleep(0.2)\n    return")
"""A reward that takes its time, so that there is a moment in which it is asked."""


ALGORITHMS: dict[str, dict[str, Any]] = {
    "grpo": {"kind": "grpo", "num_answers": 4},
    "ppo": {"kind": "ppo", "num_answers": 4, "minibatches": 1, "reuse": 1},  # a step for each rollout, as GRPO has
}


def write_recipe(folder: Path, algorithm: str) -> dict[str, Any]:
    write_desk(folder)
    (folder / "vowels.py").write_text(SLOWLY)
    values = recipe_values(
        folder / "model",
        folder / "rows.jsonl",
        data={"validation": "none", "max_length": 64},
        training={"steps": 8, "rows_per_step": 4, "tokens_per_micro_batch": 128, "checkpoint_every": 3},
    )
    objective: dict[str, Any] = {
        **ALGORITHMS[algorithm], "rewards": [{"function": str(folder / "vowels.py")}], "max_new_tokens": 24, "kl": 0.1,
    }  # fmt: skip
    values["objective"] = objective
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    return values


def written(run: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((run / FOLDER).iterdir())}


def said(run: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "rollout_seconds"} for line in course(run)]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_kills_in_drawing_in_scoring_and_in_learning_change_nothing_in_the_end(tmp_path: Path, algorithm: str) -> None:
    with one_thread():
        begin(write_recipe(tmp_path, algorithm), tmp_path / "whole")
    run = tmp_path / "killed"

    def is_there(name: str) -> bool:
        return (run / FOLDER / name).exists()

    def is_drawing() -> bool:
        return last_step(run) == 2 and not is_there("000002.unscored-0") and not is_there("000002.jsonl")

    def is_scoring() -> bool:
        return is_there("000004.unscored-0") and not is_there("000004.jsonl")

    def is_learning() -> bool:
        return is_there("000005.jsonl") and last_step(run) == 5

    for number, moment in enumerate((is_drawing, is_scoring, is_learning)):
        process = start(
            *(["resume", "killed"] if number else ["train", "recipe.yaml", "--out", "killed"]), folder=tmp_path
        )
        signal_at(process, signal.SIGKILL, moment)
        code, _, err = end_of(process)
        assert code == -signal.SIGKILL, err
    code, _, err = end_of(start("resume", "killed", folder=tmp_path))
    assert code == 0, err
    whole = tmp_path / "whole"
    assert outcome(run)[0] == outcome(whole)[0]
    assert said(run) == said(whole)
    assert written(run) == written(whole)
