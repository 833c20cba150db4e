"""Processes forked from one that has the heavy imports: what many tests start need not import them each time, for seconds."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

HEAVY = (
    "torch",
    "transformers.models.llama.modeling_llama",
    "luthier.run",
    "luthier.training.loop",
    "luthier.cli.main",
    "peft",
    "trl",
)


@dataclass(frozen=True)
class Surroundings:
    """What a fresh process would have of its own. out, err: files that its output goes to."""

    folder: Path
    environment: Mapping[str, str]
    arguments: Sequence[str]
    out: Path
    err: Path


def forked(work: Callable[..., Any], *given: Any, within: Surroundings) -> BaseProcess:
    """Begin `work(*given)` in a process of its own; its exit code is that of `sys.exit` there, minus a signal's number else."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(list(HEAVY))
    process = forks.Process(target=_settled, args=(work, given, within))
    process.start()
    return process


def _settled(work: Callable[..., Any], given: Sequence[Any], within: Surroundings) -> None:
    for number, path in ((1, within.out), (2, within.err)):
        with path.open("ab") as file:
            os.dup2(file.fileno(), number)
    os.chdir(within.folder)
    os.environ.clear()
    os.environ.update(within.environment)
    sys.argv = list(within.arguments)
    work(*given)
