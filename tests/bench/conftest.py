"""Contestants of the benches share the cores with other tests, and the imports with each other."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import processes

HEAVY = ("torch", "transformers.models.llama.modeling_llama", "peft", "trl", "luthier.run", "luthier.training.loop")
"""What most contestants import, for ten seconds each: the process that they are forked from has it already."""


def run_forked(module: str, arguments: Sequence[str], environment: dict[str, str], log: Path) -> None:
    """What a fresh `python -m MODULE` would do, its output in the log."""
    with log.open("wb") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    os.chdir(processes.ROOT)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def exit_code_of(module: str, arguments: Sequence[str], environment: dict[str, str], log: Path) -> int:
    """As the benches' own, from a process that has the heavy imports."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(list(HEAVY))
    process = forks.Process(target=run_forked, args=(module, arguments, environment, log))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


@pytest.fixture(autouse=True)
def share_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread each, as this process has: two of torch's own number would wait for each other."""
    monkeypatch.setattr(processes, "_THREAD_LIMITS", ())
    monkeypatch.setattr(processes, "exit_code_of", exit_code_of)
