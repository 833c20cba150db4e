"""Run folders are made once, listed with their state, found by name, and keep each step's metrics once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from failing_disk import FailingAt, Fault, every_fault

from luthier.errors import DataError, NotFound
from luthier.store.files import read_json, write_json, write_text
from luthier.store.runs import (
    METRICS,
    PLAN,
    STATUS,
    append_metrics,
    cut_metrics,
    find_run,
    list_runs,
    new_run_folder,
    read_metrics,
    read_run,
    write_status,
)

RESOLVED = "model: {name: smollm2-135m, dtype: auto}\nmethod: {kind: lora, rank: 8}\n"


def a_run(base: Path, name: str, losses: list[float]) -> Path:
    run = new_run_folder(base, name)
    write_text(run / "recipe.resolved.yaml", RESOLVED)
    for step, loss in enumerate(losses, start=1):
        append_metrics(run, {"step": step, "loss": loss})
    return run


# ── folders ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_numbers_go_up_and_gaps_are_not_filled(tmp_path: Path) -> None:
    assert new_run_folder(tmp_path / "runs", "tickets").name == "tickets-1"
    (tmp_path / "runs" / "tickets-9").mkdir()
    (tmp_path / "runs" / "tickets-big-20").mkdir()
    assert new_run_folder(tmp_path / "runs", "tickets").name == "tickets-10"
    assert new_run_folder(tmp_path / "runs", "../my data!").name == "my-data-1"
    assert new_run_folder(tmp_path / "runs", "…").name == "run-1"


def test_many_at_once_never_get_the_same_folder(tmp_path: Path) -> None:
    folders: list[Path] = []
    threads = [threading.Thread(target=lambda: folders.append(new_run_folder(tmp_path, "x"))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(folder.name for folder in folders) == sorted(f"x-{n}" for n in range(1, 21))


def test_runs_are_listed_in_the_order_of_their_start_with_what_is_known(tmp_path: Path) -> None:
    second = a_run(tmp_path, "b", [3.0, 2.5])
    first = a_run(tmp_path, "a", [])
    (tmp_path / "no run").mkdir()
    write_status(first, "failed", message="The disk is full.")
    write_status(second, "running", step=0, total_steps=10)
    one, two = list_runs(tmp_path)
    assert (one.name, one.state, one.step, one.last_loss, one.message) == (
        "a-1",
        "failed",
        None,
        None,
        "The disk is full.",
    )
    assert (two.name, two.state, two.step, two.total_steps, two.last_loss) == ("b-1", "running", 2, 10, 2.5)
    assert (two.model, two.method) == ("smollm2-135m", "lora")
    assert list_runs(tmp_path / "none") == []


def test_the_start_and_the_number_of_steps_stay_when_the_status_is_written_again(tmp_path: Path) -> None:
    run = a_run(tmp_path, "x", [])
    write_status(run, "running", step=3, total_steps=10)
    began = read_json(run / STATUS)["started"]
    write_status(run, "finished")
    status = read_json(run / STATUS)
    assert (status["started"], status["step"], status["total_steps"]) == (began, 3, 10)
    assert status["updated"] > began
    assert read_run(run).state == "finished"


def test_a_run_whose_process_died_without_a_word_is_stopped(tmp_path: Path) -> None:
    run = a_run(tmp_path, "x", [1.0])
    code = "import sys, os; from pathlib import Path; from luthier.store.runs import write_status\n"
    code += "write_status(Path(sys.argv[1]), 'running'); os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(run)], check=False)
    assert read_json(run / STATUS)["state"] == "running"
    assert read_run(run).state == "stopped"


def test_a_run_on_another_machine_runs_as_long_as_it_gives_signs_of_life(tmp_path: Path) -> None:
    run = a_run(tmp_path, "x", [1.0])
    write_json(run / STATUS, {"state": "running", "owner": "000000-1-1"})
    assert read_run(run).state == "running"
    for file in run.iterdir():
        os.utime(file, (0, 0))
    assert read_run(run).state == "stopped"


def test_a_run_with_broken_files_is_listed_all_the_same(tmp_path: Path) -> None:
    run = a_run(tmp_path, "x", [])
    write_text(run / STATUS, "{")
    write_text(run / METRICS, "no json\n{}\n")
    write_text(run / "recipe.resolved.yaml", "a: [")
    info = read_run(run)
    assert (info.state, info.step, info.model, info.method) == ("stopped", None, "", "")


# ── finding ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_is_found_by_path_by_name_and_as_the_latest(tmp_path: Path) -> None:
    base = tmp_path / "runs"
    first, second = a_run(base, "tickets", []), a_run(base, "tickets", [])
    write_status(second, "finished")
    write_status(first, "finished")
    assert find_run(str(second), base) == second
    assert find_run("tickets-2", base) == second
    assert find_run("latest", base) == first


def test_what_is_not_there_is_answered_with_near_names(tmp_path: Path) -> None:
    base = tmp_path / "runs"
    with pytest.raises(NotFound, match="no runs"):
        find_run("latest", base)
    a_run(base, "tickets", [])
    a_run(base, "tickets", [])
    for text in ("tickets", "tickest-2"):
        with pytest.raises(NotFound) as caught:
            find_run(text, base)
        assert "tickets-2" in caught.value.mend
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound, match="holds no run"):
        find_run(str(tmp_path / "empty"), base)


# ── metrics ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_metrics_are_read_back_as_written(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    lines = [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "loss": 1e-300, "validation_loss": 2.5}]
    for line in lines:
        append_metrics(tmp_path, line)
    assert read_metrics(tmp_path) == lines
    assert [json.loads(text) for text in (tmp_path / METRICS).read_text().splitlines()] == lines


def test_cutting_keeps_the_lines_up_to_the_step_and_drops_a_torn_one(tmp_path: Path) -> None:
    for step in range(1, 6):
        append_metrics(tmp_path, {"step": step, "loss": step / 3})
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 6, "lo')
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    cut_metrics(tmp_path, 9)
    assert (tmp_path / METRICS).read_text().endswith("\n")
    cut_metrics(tmp_path, 3)
    append_metrics(tmp_path, {"step": 4, "loss": 0.0})
    assert read_metrics(tmp_path) == [{"step": s, "loss": s / 3} for s in (1, 2, 3)] + [{"step": 4, "loss": 0.0}]
    cut_metrics(tmp_path, 0)
    assert read_metrics(tmp_path) == []


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    write_text(tmp_path / METRICS, '{"step": 1}\noops\n{"step": 2}\n')
    with pytest.raises(DataError) as caught:
        read_metrics(tmp_path)
    assert caught.value.line == 2


def test_cutting_is_whole_or_not_at_all(tmp_path: Path, failing_at: FailingAt) -> None:
    text = "".join(json.dumps({"step": step}) + "\n" for step in range(100))
    (tmp_path / METRICS).write_text(text)

    def check(fault: Fault) -> None:
        assert len(read_metrics(tmp_path)) in (100, 51)
        (tmp_path / METRICS).write_text(text)

    assert every_fault("crash", failing_at, lambda: cut_metrics(tmp_path, 50), check) >= 4


def test_the_memory_that_was_planned_stands_beside_what_was_measured(tmp_path: Path) -> None:
    run = a_run(tmp_path, "a", [])
    assert (read_run(run).planned_bytes, read_run(run).peak_bytes) == (None, None)
    write_json(run / PLAN, {"peak_bytes": 900})
    for step, peak in ((1, 700), (2, 800)):
        append_metrics(run, {"step": step, "loss": 1.0, "peak_memory_bytes": peak})
    assert (read_run(run).planned_bytes, read_run(run).peak_bytes) == (900, 800)
