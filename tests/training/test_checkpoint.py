"""A checkpoint gives back the same bits, and no fault on the way takes the last whole one."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from failing_disk import FailingAt, Fault, Kind, every_fault
from torch import Tensor

from luthier.errors import CheckpointNotFound, DiskFull
from luthier.store import disk
from luthier.training.checkpoint import FOLDER, Checkpoint, load_checkpoint, prune_checkpoints, save_checkpoint


def made(step: int) -> Checkpoint:
    """A checkpoint whose every number tells its step."""
    trainables = {"a": torch.full((3, 2), float(step)), "b": torch.tensor(step / 7)}
    optimizer = {"a.first": torch.full((3, 2), -float(step)), "count": torch.tensor(step)}
    return Checkpoint(
        step,
        trainables,
        optimizer,
        {"scores": torch.tensor([step / 7])},
        {"best": {"loss": step / 3, "step": None}, "order": [step, 2, 1]},
    )


def bits(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.dtype, torch.Size, bytes]]:
    return {
        name: (tensor.dtype, tensor.shape, tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        for name, tensor in tensors.items()
    }


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    assert one.step == other.step
    assert bits(one.trainables) == bits(other.trainables)
    assert bits(one.optimizer) == bits(other.optimizer)
    assert bits(one.method) == bits(other.method)
    assert one.state == other.state


def steps_in(run: Path) -> list[str]:
    return sorted(entry.name for entry in (run / FOLDER).iterdir())


def test_what_is_saved_is_loaded_to_the_bit(tmp_path: Path) -> None:
    nan_payloads = torch.tensor([0x7FC00001, -0x3FFFFF, 0x7F800001, 0x00000001, -0x80000000], dtype=torch.int64)
    flat = torch.randn(10)
    trainables = {
        "nan payloads, a subnormal, minus zero": nan_payloads.to(torch.int32).view(torch.float32),
        "bf16": torch.randn(5, 3).bfloat16(),
        "fp16": torch.randn(5).half(),
        "scalar": torch.tensor(0.1),
        "nothing": torch.empty(0, 4),
        "view.1": flat[:4],
        "view.2": flat[4:].view(2, 3),
        "transposed": torch.randn(3, 4).T,
        "whole": torch.arange(4),
        "truth": torch.tensor([True, False]),
        "learned": torch.randn(2, requires_grad=True),
    }
    state = {
        "x": 0.1 + 0.2,
        "big": 2**100,
        "none": None,
        "words": "ü",
        "inf": float("inf"),
        "deep": [{"a": [1.5e-320]}],
    }
    saved = Checkpoint(7, trainables, {}, {}, state)
    save_checkpoint(tmp_path, saved)
    loaded = load_checkpoint(tmp_path)
    assert bits(loaded.trainables) == {name: bits({name: tensor.detach()})[name] for name, tensor in trainables.items()}
    assert loaded.optimizer == {}
    assert loaded.state == state


def test_the_last_one_is_loaded_unless_a_step_is_named(tmp_path: Path) -> None:
    for step in (9, 10, 2):
        save_checkpoint(tmp_path, made(step))
    assert_same(load_checkpoint(tmp_path), made(10))
    assert_same(load_checkpoint(tmp_path, 2), made(2))
    with pytest.raises(CheckpointNotFound, match=r"of step 3; there are those of steps 2, 9, 10"):
        load_checkpoint(tmp_path, 3)


def test_saving_a_step_again_leaves_one_whole_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, made(1))
    assert save_checkpoint(tmp_path, made(1)) == tmp_path / FOLDER / "step-1"
    assert steps_in(tmp_path) == ["step-1"]
    assert_same(load_checkpoint(tmp_path), made(1))


@pytest.mark.parametrize("file", ["trainables.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_broken_checkpoint_is_passed_over_and_named(tmp_path: Path, file: str, damage: str) -> None:
    save_checkpoint(tmp_path, made(1))
    path = save_checkpoint(tmp_path, made(2)) / file
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[:-3])
    elif damage == "flipped":
        path.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 0x80]) + data[len(data) // 2 + 1 :])
    else:
        path.unlink()
    said: list[str] = []
    assert_same(load_checkpoint(tmp_path, announce=said.append), made(1))
    assert len(said) == 1
    assert "step 2" in said[0]
    assert file in said[0]
    with pytest.raises(CheckpointNotFound, match=file):
        load_checkpoint(tmp_path, 2)


def test_a_checkpoint_under_another_step_s_name_is_not_taken(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, made(1)).rename(tmp_path / FOLDER / "step-5")
    with pytest.raises(CheckpointNotFound, match="not that of step 5"):
        load_checkpoint(tmp_path)


def test_without_checkpoints_none_is_found(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound):
        load_checkpoint(tmp_path)
    with pytest.raises(CheckpointNotFound):
        load_checkpoint(tmp_path / "none")


def test_pruning_keeps_the_last_whole_ones_and_the_named(tmp_path: Path) -> None:
    for step in range(1, 8):
        save_checkpoint(tmp_path, made(step))
    for broken in (2, 7):
        (tmp_path / FOLDER / f"step-{broken}" / "state.json").unlink()
    assert prune_checkpoints(tmp_path, 2, {3}) == [1, 2, 4]
    assert steps_in(tmp_path) == ["step-3", "step-5", "step-6", "step-7"]
    assert prune_checkpoints(tmp_path, 4, ()) == []
    assert_same(load_checkpoint(tmp_path), made(6))


@pytest.mark.parametrize("kind", ["once", "full", "crash"])
def test_saving_and_pruning_never_lose_the_last_nor_the_best(tmp_path: Path, failing_at: FailingAt, kind: Kind) -> None:
    """Checkpoints 1 (the best), 2 and 3 are there; 4 is saved and 2 pruned, with a fault at every operation in turn."""
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, made(step))

    def attempt() -> None:
        save_checkpoint(tmp_path, made(4))
        prune_checkpoints(tmp_path, 2, {1})

    def check(fault: Fault) -> None:
        assert_same(load_checkpoint(tmp_path, 1), made(1))
        last = load_checkpoint(tmp_path, announce=lambda sentence: pytest.fail(sentence))
        assert last.step in (3, 4)
        assert last.step == 4 or fault.struck
        assert_same(last, made(last.step))
        if kind == "once":
            attempt()
            assert [name for name in steps_in(tmp_path) if name.startswith("step")] == ["step-1", "step-3", "step-4"]
        else:
            attempt()
            assert steps_in(tmp_path) == ["step-1", "step-3", "step-4"], "the next save cleans up after the dead"
        for step in (2, 3):
            save_checkpoint(tmp_path, made(step))
        (tmp_path / FOLDER / "step-4").rename(tmp_path / "away")
        for path in sorted((tmp_path / "away").iterdir()):
            path.unlink()
        (tmp_path / "away").rmdir()

    assert every_fault(kind, failing_at, attempt, check) >= 20


@pytest.mark.parametrize("kind", ["once", "full", "crash"])
def test_replacing_a_checkpoint_never_loses_it(tmp_path: Path, failing_at: FailingAt, kind: Kind) -> None:
    save_checkpoint(tmp_path, made(3))
    attempts: list[Path] = []

    def attempt() -> None:
        attempts.append(save_checkpoint(tmp_path, made(3)))

    def check(fault: Fault) -> None:
        assert_same(load_checkpoint(tmp_path), made(3))

    assert every_fault(kind, failing_at, attempt, check) >= 20
    assert attempts


def test_a_full_disk_says_so_and_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, made(1))

    def refuse(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "write", refuse)
        with pytest.raises(DiskFull, match=r"/step-2/state.json could not be written"):
            save_checkpoint(tmp_path, made(2))
    assert_same(load_checkpoint(tmp_path), made(1))
