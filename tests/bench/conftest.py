"""Contestants of the benches share the cores with other tests, and the imports with each other."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from pathlib import Path

import pytest
from forks import Surroundings, forked

from bench import processes


def exit_code_of(module: str, arguments: Sequence[str], environment: dict[str, str], log: Path) -> int:
    """As the benches' own, from a process that has the heavy imports."""
    log.write_bytes(b"")
    within = Surroundings(processes.ROOT, environment, [module, *arguments], out=log, err=log)
    process = forked(runpy.run_module, module, None, "__main__", True, within=within)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


@pytest.fixture(autouse=True)
def share_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread each, as this process has: two of torch's own number would wait for each other."""
    monkeypatch.setattr(processes, "_THREAD_LIMITS", ())
    monkeypatch.setattr(processes, "exit_code_of", exit_code_of)
