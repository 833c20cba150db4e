"""The program as a user runs it: a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
