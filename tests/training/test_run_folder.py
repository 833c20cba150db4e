"""A run is one process's at a time, and its status says how it ended."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch

from luthier.errors import ResourceError, UsageError
from luthier.store import runs
from luthier.store.runs import append_metrics, read_run
from luthier.training import run_folder
from luthier.training.run_folder import carried_out


def nothing(sentence: str) -> None:
    """Take a word, and do nothing."""


def test_of_several_that_begin_at_the_same_moment_one_carries_the_run_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each thread stands for a process, and looks long before it writes."""

    def looked_long(folder: Path) -> bool:
        is_busy = runs.is_busy(folder)
        time.sleep(0.05)
        return is_busy

    monkeypatch.setattr(runs, "owner_tag", lambda: f"process {threading.get_ident()}")
    monkeypatch.setattr(runs, "owner_is_alive", lambda tag: True)
    monkeypatch.setattr(run_folder, "is_busy", looked_long)
    all_tried = threading.Barrier(4, timeout=30)
    ended: list[str] = []

    def carry_out() -> None:
        try:
            with carried_out(tmp_path, nothing):
                all_tried.wait()
                ended.append("carried out")
        except UsageError as error:
            ended.append(error.found)
            all_tried.wait()

    threads = [threading.Thread(target=carry_out) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ended) == [f"Another process is carrying out the run {tmp_path}."] * 3 + ["carried out"]
    assert read_run(tmp_path).state == "finished"


def test_a_shortage_of_memory_is_told_with_what_to_lower_and_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "my run"
    append_metrics(folder, {"step": 1, "loss": 2.0})
    with pytest.raises(ResourceError, match="not enough memory") as told, carried_out(folder, nothing):
        torch.empty(2**60)
    for way in ("tokens_per_micro_batch", "gradient_checkpointing", "bf16", f"luthier resume '{folder}'"):
        assert way in told.value.mend
    assert (read_run(folder).state, "not enough memory" in read_run(folder).message) == ("failed", True)


def test_a_fault_of_our_own_is_the_runs_last_word_too(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), carried_out(tmp_path, nothing):
        raise ZeroDivisionError("ours")
    assert (read_run(tmp_path).state, read_run(tmp_path).message) == ("failed", "ZeroDivisionError: ours")
