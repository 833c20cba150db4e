"""Real processes of `luthier train` and `luthier resume`, killed and asked to stop; the bits at the end are the same."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import Started, end_of, is_owner, last_step, saved_steps, signal_at, start, wait_for
from tiny_model import write_tiny_model
from tiny_runs import files_of, outcome, recipe_values, write_rows

pytestmark = pytest.mark.slow

NUM_STEPS, EVERY = 120, 20


@dataclass(frozen=True)
class Workshop:
    """A working folder with recipe.yaml, and the run `unbroken` that nothing happened to."""

    folder: Path

    @property
    def unbroken(self) -> Path:
        return self.folder / "unbroken"

    def write_recipe(self, name: str, rows: Path, **training: Any) -> None:
        values = recipe_values(self.folder / "model", rows, training=training, method={"dropout": 0.2})
        (self.folder / name).write_text(yaml.safe_dump(values))

    def start(self, *words: str) -> Started:
        return start(*words, folder=self.folder)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """The unbroken run is made by the program too."""
    workshop = Workshop(tmp_path_factory.mktemp("kills"))
    write_tiny_model(workshop.folder / "model")
    rows = write_rows(workshop.folder / "rows.jsonl", 18)
    workshop.write_recipe("recipe.yaml", rows, steps=NUM_STEPS, checkpoint_every=EVERY)
    code, _, err = end_of(workshop.start("train", "recipe.yaml", "--out", "unbroken"))
    assert code == 0, err
    return workshop


def test_five_kills_at_chosen_moments_change_nothing_in_the_end(workshop: Workshop) -> None:
    run = workshop.folder / "killed"

    def is_before_the_first_checkpoint() -> bool:
        return last_step(run) > 2 and not saved_steps(run)

    def is_reading_the_model() -> bool:
        return is_owner(run, process)

    def is_writing_a_checkpoint() -> bool:
        return last_step(run) > EVERY and any((run / "checkpoints").glob(".step-*.new.partial"))

    def is_between_checkpoints() -> bool:
        return len(saved_steps(run)) == 2 and last_step(run) > saved_steps(run)[-1] + EVERY // 4

    def is_finishing() -> bool:
        return NUM_STEPS in saved_steps(run) and not (run / "report.md").exists()

    moments = [
        is_before_the_first_checkpoint,
        is_reading_the_model,
        is_writing_a_checkpoint,
        is_between_checkpoints,
        is_finishing,
    ]
    for number, moment in enumerate(moments):
        process = workshop.start(*(["resume", "killed"] if number else ["train", "recipe.yaml", "--out", "killed"]))
        signal_at(process, signal.SIGKILL, moment)
        code, _, err = end_of(process)
        assert code == -signal.SIGKILL, err
        assert moment is not is_writing_a_checkpoint or any((run / "checkpoints").glob(".step-*.new.partial"))
    code, out, err = end_of(workshop.start("resume", "killed"))
    assert (code, out) == (0, "killed\n"), err
    assert outcome(run) == outcome(workshop.unbroken)
    assert not [name for name in files_of(run) if ".partial" in name]


def test_a_run_asked_to_stop_saves_its_state_and_says_how_to_go_on(workshop: Workshop) -> None:
    """SIGTERM, then, in the resumed run, Ctrl-C; then it goes on to the same bits."""
    run = workshop.folder / "asked"

    process = workshop.start("train", "recipe.yaml", "--out", "asked")
    signal_at(process, signal.SIGTERM, lambda: last_step(run) >= 5)
    code, out, err = end_of(process)
    assert (code, out) == (143, ""), err
    assert "the state is saved" in err
    assert "luthier resume asked" in err
    assert "Traceback" not in err
    stopped_after = last_step(run)
    assert saved_steps(run)[-1] == stopped_after < NUM_STEPS

    process = workshop.start("resume", "asked", "--json")
    signal_at(process, signal.SIGINT, lambda: last_step(run) >= stopped_after + 5)
    code, out, err = end_of(process)
    assert code == 130, err
    error = json.loads(out)["error"]
    assert (error["kind"], error["exit_code"]) == ("Interrupted", 130)
    assert "luthier resume asked" in error["mend"]
    assert saved_steps(run)[-1] == last_step(run) < NUM_STEPS

    code, _, err = end_of(workshop.start("resume", "asked"))
    assert code == 0, err
    assert outcome(run) == outcome(workshop.unbroken)


def test_a_second_ctrl_c_stops_in_the_middle_of_a_step(workshop: Workshop) -> None:
    """A step of some seconds: the first Ctrl-C waits for its end, the second does not."""
    rows = write_rows(workshop.folder / "many.jsonl", 800)
    workshop.write_recipe("long.yaml", rows, steps=2, rows_per_step=800, checkpoint_every=1)
    run = workshop.folder / "long"
    process = workshop.start("train", "long.yaml", "--out", "long")
    wait_for(process, lambda: saved_steps(run) == [1])
    step_seconds = json.loads((run / "metrics.jsonl").read_text())["seconds"]
    time.sleep(0.15 * step_seconds)  # the second step is under way
    process.send_signal(signal.SIGINT)
    time.sleep(0.15 * step_seconds)
    assert process.poll() is None, end_of(process)
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    code, out, err = end_of(process)
    assert (code, out) == (130, ""), err
    assert "luthier resume long" in err
    assert "Traceback" not in err
    assert time.monotonic() - asked < 0.6 * step_seconds, "the second Ctrl-C does not"
    assert saved_steps(run) == [1]
    assert last_step(run) == 1
