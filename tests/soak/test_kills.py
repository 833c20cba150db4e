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
from processes import PATIENCE_SECONDS, PROGRAM, environment, last_step, saved_steps
from tiny_model import write_tiny_model
from tiny_runs import course, files_of, recipe_values, trained_files, write_rows

NUM_KILLS = 50
SEED = int(os.environ.get("SOAK_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_fifty_kills_at_random_moments_change_nothing_in_the_end(tmp_path: Path) -> None:
    """A run that comes to its end before all kills are spent is compared, and the next one is begun."""
    print(f"\nSOAK_SEED={SEED} draws these moments.", flush=True)
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
    end_well(begin_or_resume(tmp_path / "unbroken"))
    whole_seconds = time.monotonic() - began

    num_kills = num_runs = 0
    while num_kills < NUM_KILLS:
        num_runs += 1
        run = tmp_path / f"run-{num_runs}"
        while num_kills < NUM_KILLS:
            process = begin_or_resume(run)
            if not is_killed(process, run, draws, whole_seconds):
                break
            num_kills += 1
            print(f"kill {num_kills}: step {last_step(run)}, checkpoints {saved_steps(run)}", flush=True)
        end_well(process if process.poll() == 0 else begin_or_resume(run))
        assert course(run) == course(tmp_path / "unbroken")
        assert trained_files(run) == trained_files(tmp_path / "unbroken")
        assert not [name for name in files_of(run) if ".partial" in name]
    print(f"{num_kills} kills over {num_runs} runs.", flush=True)


def begin_or_resume(run: Path) -> subprocess.Popen[str]:
    is_begun = (run / "recipe.yaml").is_file()
    words = ["resume", run.name] if is_begun else ["train", "recipe.yaml", "--out", run.name]
    # the program itself, whose first seconds are killed too
    return subprocess.Popen(
        [str(PROGRAM), *words],
        cwd=run.parent,
        env=environment(run.parent),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def end_well(process: subprocess.Popen[str]) -> None:
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, err


def is_killed(process: subprocess.Popen[str], run: Path, draws: random.Random, whole_seconds: float) -> bool:
    """Kill a process at a random moment of its start, or (three times in four) of its work; False if it ended before."""
    metrics = run / "metrics.jsonl"
    waits_for_work = draws.random() < 0.75
    seconds = draws.uniform(0, whole_seconds / 6)
    before = metrics.stat().st_mtime_ns if metrics.is_file() else 0
    while waits_for_work and process.poll() is None and (not metrics.is_file() or metrics.stat().st_mtime_ns == before):
        time.sleep(0.002)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=PATIENCE_SECONDS)
        return True
    return False
