"""The program as a user runs it: in a process of its own, or, where the process itself is not what is tested, within this one."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from luthier.cli.main import main

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard out as the one JSON document that it must be."""
        return json.loads(self.out)


def luthier(*words: str | Path, folder: Path, given: str = "", timeout: float = 240) -> Ended:
    """Run `luthier WORDS` in a folder, with `given` on standard in."""
    command = [sys.executable, "-m", "luthier", *map(str, words)]
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, input=given, capture_output=True, text=True, env=environment, timeout=timeout, check=False
    )
    return Ended(done.returncode, done.stdout, done.stderr)


class Terminal(io.StringIO):
    """What a person types at a terminal."""

    def isatty(self) -> bool:
        """See the base class."""
        return True


def within(*words: str | Path, folder: Path, given: str = "", typed: str | None = None) -> Ended:
    """As `luthier`, in this process, which saves the seconds that a new one takes to import what the command needs.

    typed: what a person types, where standard in is a terminal.
    """
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "stdin", io.StringIO(given) if typed is None else Terminal(typed))
        patch.setenv("COLUMNS", "120")
        code = main([str(word) for word in words])
    return Ended(code, out.getvalue(), err.getvalue())
