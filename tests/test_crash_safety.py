"""Whatever happens to the process or to the disk at any moment, `luthier resume` ends in the same bits.

In the proofs of this file one run is very short (three steps, two checkpoints, one of them pruned away); the disk fails, or
the process ends, at every single operation that the run asks of the disk.
"""

from __future__ import annotations

import copy
import errno
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from every_moment import Moments, every_moment_of
from failing_disk import FailingAt, Kind
from tiny_model import write_tiny_model
from tiny_runs import begin, files_of, go_on, one_thread, outcome, recipe_values, write_rows

from luthier import run, tuned
from luthier.errors import DiskFull, LuthierError, NotFinite
from luthier.models.loading import load_model
from luthier.store import disk, files, owners
from luthier.store.runs import read_run
from luthier.training import checkpoint
from luthier.training.checkpoint import load_checkpoint

Values = dict[str, Any]


@dataclass(frozen=True)
class Short:
    """The short run: its recipe, and how it ends unbroken."""

    values: Values
    unbroken: Path


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Short]:
    """The model is read from the disk once."""
    folder = tmp_path_factory.mktemp("crash")
    values = recipe_values(
        write_tiny_model(folder / "model"),
        write_rows(folder / "rows.jsonl", 3),
        method={"targets": ["q_proj"], "layers": [1]},
        training={"steps": 3, "rows_per_step": 1, "keep_last": 1},
    )
    loaded: list[Any] = []

    def load_once(settings: Any, announce: Any, **switches: Any) -> Any:
        if not loaded:
            loaded.append(load_model(settings, announce, **switches))
        return copy.deepcopy(loaded[0])

    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.setenv("HOME", str(folder))
        patch.setattr(tuned, "load_model", load_once)
        begin(values, folder / "unbroken")
        yield Short(values, folder / "unbroken")


def end_it(values: Values, folder: Path) -> None:
    """What a person does after a crash: resume; or, where the run had not even begun, train again."""
    begun = (folder / "recipe.yaml").is_file()
    go_on(folder) if begun else begin(values, folder)


def half_done_files(folder: Path) -> list[str]:
    return [name for name in files_of(folder) if ".partial" in name]


# ── the end of the process, or of the power ─────────────────────────────────────────────────────────────────────────


def assert_all_end_alike(moments: Moments, short: Short, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (files, owners):
        monkeypatch.setattr(module, "owner_is_alive", lambda tag: False)  # that process has ended
    expected = outcome(short.unbroken)
    for folder, saved in zip(moments.folders, moments.saved, strict=True):
        before = sorted(files_of(folder))
        if saved:
            assert load_checkpoint(folder).step >= saved, before
        end_it(short.values, folder)
        assert outcome(folder) == expected, before
        assert read_run(folder).state == "finished", before
        assert half_done_files(folder) == [], before


def test_a_run_that_ends_at_any_operation_on_the_disk_is_resumed_to_the_same_bits(
    short: Short, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    moments = every_moment_of(lambda: begin(short.values, folder), folder, tmp_path / "moments")
    assert moments.num_operations > 150
    assert len(moments.folders) > 80
    assert set(moments.saved) == {0, 2, 3}
    assert_all_end_alike(moments, short, monkeypatch)


def test_a_resumption_that_ends_at_any_operation_is_resumed_to_the_same_bits(
    short: Short, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last checkpoint is damaged and the metrics are torn, so the resumption has most to mend."""
    folder = tmp_path / "run"
    shutil.copytree(short.unbroken, folder)
    (folder / "status.json").unlink()
    (folder / "report.md").unlink()
    (folder / "checkpoints" / "step-3" / "state.json").write_bytes(b"{")
    with (folder / "metrics.jsonl").open("ab") as metrics:
        metrics.write(b'{"step": 4, "lo')
    moments = every_moment_of(lambda: go_on(folder), folder, tmp_path / "moments")
    assert outcome(folder) == outcome(short.unbroken)
    assert_all_end_alike(moments, short, monkeypatch)


# ── a full disk ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["full", "once"])
def test_a_disk_that_is_full_at_any_operation_says_so_and_loses_nothing(
    short: Short, tmp_path: Path, failing_at: FailingAt, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """full: from then on nothing more fits. once: only that one operation found no room. Each takes every second operation."""
    expected = outcome(short.unbroken)
    saved: list[int] = []

    def save(folder: Path, state: checkpoint.Checkpoint) -> Path:
        path = checkpoint.save_checkpoint(folder, state)
        saved.append(state.step)
        return path

    monkeypatch.setattr(run, "save_checkpoint", save)
    num_refused = 0
    for n in range(1 if kind == "full" else 2, 500, 2):
        folder = tmp_path / str(n)
        saved.clear()
        refusal: LuthierError | None = None
        with failing_at(n, kind) as fault:
            try:
                begin(short.values, folder)
            except LuthierError as error:
                refusal = error
        if refusal is None:
            assert outcome(folder) == expected, f"operation {n} was refused, and what came out is not what should"
        else:
            num_refused += 1
            assert_tells_the_mend(refusal, folder)
            if saved:
                assert load_checkpoint(folder).step >= saved[-1]
            end_it(short.values, folder)
            assert outcome(folder) == expected, f"operation {n} was refused: {refusal}"
        if not fault.struck:
            break
        shutil.rmtree(folder, ignore_errors=True)
    assert num_refused > 50


def assert_tells_the_mend(refusal: LuthierError, folder: Path) -> None:
    assert isinstance(refusal, DiskFull), refusal
    assert refusal.exit_code == 6
    assert "the disk is full" in refusal.found
    assert ".partial" not in str(refusal)
    assert "Free some room" in refusal.mend
    if (folder / "metrics.jsonl").is_file():
        assert f"luthier resume {folder}" in refusal.mend


def test_a_full_disk_is_told_though_the_status_cannot_be_written_either(
    short: Short, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence names the checkpoint that did not fit, not the small file that tells of it."""

    def full_from_now_on(state: object, path: Path) -> None:
        monkeypatch.setattr(disk, "write", refuse)
        refuse()

    def refuse(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full_from_now_on)
    with pytest.raises(DiskFull, match=r"checkpoints/step-2 could not be written: the disk is full") as full:
        begin(short.values, tmp_path / "run")
    assert "To go on: luthier resume" in full.value.mend


# ── numbers that are none ───────────────────────────────────────────────────────────────────────────────────────────


def blown_up(short: Short, **training: Any) -> Values:
    """The short run at a learning rate that no number format holds."""
    every_step = {"checkpoint_every": 1, "clip_norm": 1.0, "schedule": {"kind": "constant", "warmup_steps": 0}}
    return {
        **short.values,
        "method": {"rank": 2},
        "training": {**short.values["training"], **every_step, "peak_lr": 1e30, **training},
    }


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_checkpoint(short: Short, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(NotFinite, match=r"^At step 2 the loss is (nan|inf) ") as ended:
        begin(blown_up(short), folder)
    assert ended.value.exit_code == 6
    assert "lower training.peak_lr" in ended.value.mend
    assert "resume" not in ended.value.mend, "the same numbers would come out again"
    kept = load_checkpoint(folder)
    assert kept.step == 1
    assert all(bool(tensor.isfinite().all()) for tensor in kept.trainables.values())
    assert (read_run(folder).state, read_run(folder).step) == ("failed", 1)
    assert not (folder / "adapter").exists()


def test_weights_that_are_not_finite_are_never_kept(short: Short, tmp_path: Path) -> None:
    """The loss of the only step is fine; what the update made of the weights is not."""
    with pytest.raises(NotFinite, match=r"^After step 1 some weights are NaN or infinite"):
        begin(blown_up(short, peak_lr=1e39, steps=1), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_held_out_loss_that_is_not_finite_ends_the_run(short: Short, tmp_path: Path) -> None:
    values = blown_up(short, evaluate_every=1)
    values["data"] = {**values["data"], "validation": values["data"]["train"]}
    with pytest.raises(NotFinite, match=r"^After step 1 the held-out loss is (nan|inf)"):
        begin(values, tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").exists() is False
