"""Rollouts over a base in four bits: the engine that writes and the trainer that learns compute on the same packed weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rollout_desk import write_desk
from tiny_runs import Cut, begin, course, cut_after, go_on, one_thread, outcome, recipe_values

from luthier.rlhf.kept import FOLDER, read_rollout


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, prompts, and a reward for vowels."""
    return write_desk(tmp_path_factory.mktemp("desk"))


def values_of(desk: Path, kind: str, objective: dict[str, Any]) -> dict[str, Any]:
    values = recipe_values(
        desk / "model",
        desk / "rows.jsonl",
        data={"max_length": 64},
        quantization={"kind": "nf4"},
        training={"rows_per_step": 2, "tokens_per_micro_batch": 128, "steps": 4, "checkpoint_every": 1},
    )
    reward = {"function": str(desk / "vowels.py")}
    return {
        **values,
        "objective": {"kind": kind, "rewards": [reward], "num_answers": 2, "max_new_tokens": 6, **objective},
    }


@pytest.mark.parametrize(
    ("kind", "objective"), [("grpo", {"kl": 0.1, "reuse": 2}), ("ppo", {"minibatches": 2, "reuse": 1})]
)
def test_a_run_over_four_bits_learns_from_answers_of_the_very_same_policy_and_goes_on_to_the_same_bits(
    kind: str, objective: dict[str, Any], desk: Path, tmp_path: Path
) -> None:
    with one_thread():
        begin(values_of(desk, kind, objective), tmp_path / "whole")
        with pytest.raises(Cut):
            begin(values_of(desk, kind, objective), tmp_path / "cut", cut_after(3))
        go_on(tmp_path / "cut")
    assert outcome(tmp_path / "cut")[0] == outcome(tmp_path / "whole")[0]
    lines = course(tmp_path / "whole")
    assert lines[0]["ratio"] == pytest.approx(1, abs=1e-5)
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert abs(lines[-1]["kl"]) > 1e-7  # something was learned
    files = sorted((tmp_path / "whole" / FOLDER).iterdir())
    assert len(files) == 2
    for each in (each for file in files for each in read_rollout(file) or ()):
        assert each.old_T is not None
        np.testing.assert_allclose(each.engine_T, each.old_T, atol=1e-4)
