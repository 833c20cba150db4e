"""Fifty kills at random moments; every run that they hit ends in the same bits."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from processes import end_of, last_step, saved_steps, start
from tiny_model import write_tiny_model
from tiny_runs import files_of, outcome, recipe_values, write_rows

NUM_KILLS = 50
SEED = int(os.environ.get("SOAK_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_fifty_kills_at_random_moments_change_nothing_in_the_end(tmp_path: Path) -> None:
    """Each process is killed after a time drawn between nothing and a little more than an unbroken one needs to start.

    A run that comes to its end before all kills are spent is compared, and the next one is begun.
    """
    print(f"\nSOAK_SEED={SEED} repeats these moments.", flush=True)
    draws = random.Random(SEED)
    write_tiny_model(tmp_path / "model")
    values = recipe_values(
        tmp_path / "model",
        write_rows(tmp_path / "rows.jsonl", 40),
        data={"validation": str(write_rows(tmp_path / "held-out.jsonl", 6, start=100))},
        method={"dropout": 0.2},
        training={"steps": 400, "checkpoint_every": 10, "evaluate_every": 50},
    )
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    began = time.monotonic()
    code, _, err = end_of(start("train", "recipe.yaml", "--out", "unbroken", folder=tmp_path))
    assert code == 0, err
    life_seconds = time.monotonic() - began
    expected = outcome(tmp_path / "unbroken")

    num_kills = num_runs = 0
    while num_kills < NUM_KILLS:
        num_runs += 1
        run = tmp_path / f"run-{num_runs}"
        while True:
            begun = (run / "recipe.yaml").is_file()
            words = ["resume", run.name] if begun else ["train", "recipe.yaml", "--out", run.name]
            process = start(*words, folder=tmp_path)
            if num_kills == NUM_KILLS:
                break
            try:
                process.wait(timeout=draws.uniform(0, 0.7 * life_seconds))
                break  # it came to its end first
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                end_of(process)
                num_kills += 1
                print(f"kill {num_kills}: step {last_step(run)}, checkpoints {saved_steps(run)}", flush=True)
        code, _, err = end_of(process)
        assert code == 0, err
        assert outcome(run) == expected
        assert not [name for name in files_of(run) if ".partial" in name]
    print(f"{num_kills} kills over {num_runs} runs.", flush=True)
