"""Checkpoints: what a run needs to go on with the same bits, in `checkpoints/step-N/` of its folder.

    trainables.safetensors  the trained tensors, by name
    optimizer.safetensors   the optimizer's tensors, by name
    method.safetensors      what the method remembers from step to step, by name
    state.json              the step, and everything else as plain JSON
    manifest.json           size and SHA-256 of the others, written last

Safetensors and JSON only: nothing in a checkpoint can run code. A folder gets its name when it is whole
(`luthier.store.files.write_folder`), so one that bears its name is whole, unless the disk itself lost something; that is
what the hashes find.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier.errors import CheckpointNotFound, LuthierError
from luthier.store.files import (
    folder_fault,
    read_json,
    recover_folders,
    remove_folder,
    remove_leftovers,
    write_folder,
    write_json,
)

FOLDER = "checkpoints"
_TRAINABLES, _OPTIMIZER, _METHOD = "trainables.safetensors", "optimizer.safetensors", "method.safetensors"
_STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A run after `step` optimizer steps. `state` is plain JSON: string keys, lists, numbers, words, truth values, None."""

    step: int
    trainables: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    method: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(run_folder: Path, checkpoint: Checkpoint) -> Path:
    """The folder of the saved checkpoint, whole and on the disk; one of the same step is replaced.

    Raises: DiskFull, ResourceError; the checkpoints that were there before are then still there.
    """

    def fill(folder: Path) -> None:
        save_file(_plain(checkpoint.trainables), folder / _TRAINABLES)
        save_file(_plain(checkpoint.optimizer), folder / _OPTIMIZER)
        save_file(_plain(checkpoint.method), folder / _METHOD)
        write_json(folder / _STATE, {"step": checkpoint.step, "state": checkpoint.state})

    path = _path(run_folder, checkpoint.step)
    write_folder(path, fill, replace=True)
    return path


def load_checkpoint(
    run_folder: Path,
    step: int | None = None,
    announce: Callable[[str], None] = lambda sentence: None,
) -> Checkpoint:
    """The checkpoint of `step`, or (None) the last whole one; broken ones on the way are named through `announce`.

    Raises: CheckpointNotFound, with the fault of each that is there.
    """
    recover_folders(run_folder / FOLDER)
    steps = _steps(run_folder)
    faults = []
    for candidate in sorted(steps if step is None else [step], reverse=True):
        loaded = _load(_path(run_folder, candidate), candidate)
        if isinstance(loaded, Checkpoint):
            return loaded
        faults.append(f"{FOLDER}/{_path(run_folder, candidate).name}: {loaded}")
        if step is None:
            announce(f"The checkpoint of step {candidate} is passed over: {loaded}.")
    there = f"; there are those of steps {', '.join(map(str, steps))}" if step is not None and steps else ""
    raise CheckpointNotFound(
        f"{run_folder} has no whole checkpoint{'' if step is None else f' of step {step}'}{there}."
        + (f" {'; '.join(faults)}." if faults else ""),
        "Start the run again from its recipe.",
        file=str(run_folder),
    )


def prune_checkpoints(run_folder: Path, keep_last: int, keep_steps: Collection[int] = ()) -> list[int]:
    """Delete all but the last `keep_last` whole checkpoints and those of `keep_steps`; return the steps deleted.

    A broken one counts for nothing; it is deleted once `keep_last` whole ones are newer. Leftovers of dead processes go too.
    """
    assert keep_last >= 1, "without a checkpoint a run cannot go on"
    folder = run_folder / FOLDER
    recover_folders(folder)
    remove_leftovers(folder)
    steps = _steps(run_folder)
    whole = [step for step in steps if folder_fault(_path(run_folder, step), contents=False) is None]
    last = whole[-keep_last:]
    if len(last) < keep_last:
        return []
    deleted = [step for step in steps if step < last[0] and step not in keep_steps]
    for step in deleted:
        remove_folder(_path(run_folder, step))
    return deleted


def _path(run_folder: Path, step: int) -> Path:
    return run_folder / FOLDER / f"step-{step}"


def _steps(run_folder: Path) -> list[int]:
    """The steps that have a folder, in order, whole or not."""
    folder = run_folder / FOLDER
    if not folder.is_dir():
        return []
    return sorted(int(match[1]) for entry in folder.iterdir() if (match := re.fullmatch(r"step-(\d+)", entry.name)))


def _load(folder: Path, step: int) -> Checkpoint | str:
    """The checkpoint in a folder, or what is wrong with it."""
    fault = folder_fault(folder)
    if fault is not None:
        return fault
    try:
        saved = read_json(folder / _STATE)
        if not isinstance(saved, dict) or saved.get("step") != step or not isinstance(saved.get("state"), dict):
            return f"its {_STATE} is not that of step {step}"
        trainables, optimizer, method = (load_file(folder / name) for name in (_TRAINABLES, _OPTIMIZER, _METHOD))
        return Checkpoint(step, trainables, optimizer, method, saved["state"])
    except (LuthierError, SafetensorError, OSError) as error:
        return f"it cannot be read ({error})"


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors takes them: on the CPU, contiguous, without a graph. Views of one buffer are fine."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
