"""Whole runs on the tiny model, each a fraction of a second long, and what two of them must have in common."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier import run
from luthier.recipe import make_recipe
from luthier.recipe.model_card import CARD
from luthier.run import RunResult, resume_run, train_recipe
from luthier.store.files import MANIFEST, sha256_file, write_bytes

CLOCK_AND_MEMORY = {"seconds", "tokens_per_second", "memory_bytes", "peak_memory_bytes", "rollout_seconds"}
THINGS = ("lamp", "chair", "green kettle", "radio", "blue box", "small round table")


def write_rows(path: Path, count: int, start: int = 0) -> Path:
    """Write prompt/completion rows of several lengths, all of them different, as JSONL."""
    rows = [
        {
            "prompt": f"Where is order {number}, the {THINGS[number % len(THINGS)]}?",
            "completion": f"Order {number} is {'on its way' if number % 3 else 'here'}; its total is {number * 7}.",
        }
        for number in range(start, start + count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def recipe_values(model: Path, rows: Path, **parts: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe of six steps with a checkpoint after every second; `parts` change fields of a part by its name."""
    training = {"steps": 6, "rows_per_step": 4, "checkpoint_every": 2, "peak_lr": 0.01, "workers": 1}
    values: dict[str, Any] = {
        "model": str(model),
        "data": {"train": str(rows), "validation": "none", "max_length": 192},
        "method": {"kind": "lora", "rank": 2},
        "training": {**training, "tokens_per_micro_batch": 192},
        "seed": 7,
    }
    for name, changes in parts.items():
        merged = {**values.get(name, {}), **changes}
        values[name] = {key: value for key, value in merged.items() if value is not None}
    return values


def nothing(value: object) -> None:
    """Take a word or a step's numbers, and do nothing."""


def begin(
    values: Mapping[str, Any],
    folder: Path,
    on_step: Callable[[dict[str, Any]], None] = nothing,
    announce: Callable[[str], None] = nothing,
) -> RunResult:
    """Carry out a recipe given as plain values, but for the plot."""
    with without_plot():
        return train_recipe(make_recipe(values), folder, announce=announce, on_step=on_step)


def go_on(
    folder: Path,
    on_step: Callable[[dict[str, Any]], None] = nothing,
    announce: Callable[[str], None] = nothing,
) -> RunResult:
    """Resume a run, but for the plot."""
    with without_plot():
        return resume_run(folder, announce=announce, on_step=on_step)


@contextmanager
def without_plot() -> Iterator[None]:
    """Within: the plot of a run, which takes longer than the training, has a stand-in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "write_loss_plot", lambda metrics, path, objective: write_bytes(path, b"plot"))
        yield


class Cut(BaseException):
    """The process ends here, without a last word."""


def cut_after(step: int) -> Callable[[dict[str, Any]], None]:
    """A process that dies when a step is written down, before it is saved."""

    def on_step(metrics: dict[str, Any]) -> None:
        if metrics["step"] == step:
            raise Cut

    return on_step


@contextmanager
def one_thread() -> Iterator[None]:
    """Within, torch computes with one thread: for numbers as small as these, more only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained_files(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file of what a run gives away, its `adapter/` or `model/`; but for the card, which names places and speed."""
    output = folder / "model" if (folder / "model").is_dir() else folder / "adapter"
    files = [path for path in sorted(output.rglob("*")) if path.is_file() and path.name not in (MANIFEST, CARD)]
    return {path.relative_to(output).as_posix(): sha256_file(path) for path in files}


def course(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what the clock and the memory say."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in CLOCK_AND_MEMORY} for line in lines]


def outcome(folder: Path) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """All that must be the same in an unbroken run and in one that was broken off and resumed."""
    return trained_files(folder), course(folder)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }
