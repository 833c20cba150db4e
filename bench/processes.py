"""Runs one contestant at a time, each in a fresh process, and reads back what it measured.

Only the standard library is imported here, for the reason given in `work`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.clock import Lap

ROOT = Path(__file__).resolve().parents[1]
_THREAD_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # everyone runs with torch's own default
_QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}
_SHOWN_LINES = 30


class SideFailed(Exception):
    """A process of the bench ended with an error; the message holds the end of what it said."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Outcome:
    """What one process measured over the run; `loaded_peak_bytes` is its peak memory before step 1."""

    laps: tuple[Lap, ...]
    peak_bytes: int
    loaded_peak_bytes: int
    versions: dict[str, str]
    threads: int

    @property
    def losses(self) -> list[float]:
        """The loss of each step, in nats a learned token."""
        return [lap.loss for lap in self.laps]


def run_module(module: str, arguments: Sequence[str], log: Path, *, offline: bool = True) -> None:
    """Run `python -m MODULE` to its end, its output in the log. Raises: SideFailed."""
    environment = {name: value for name, value in os.environ.items() if name not in _THREAD_LIMITS}
    environment |= _QUIET if offline else {}
    code = exit_code_of(module, arguments, environment, log)
    if code != 0:
        lines = log.read_text("utf-8", errors="replace").splitlines()[-_SHOWN_LINES:]
        raise SideFailed("\n".join([f"{module} ended with exit code {code}:", *lines]), code)


def exit_code_of(module: str, arguments: Sequence[str], environment: dict[str, str], log: Path) -> int:
    """Run `python -m MODULE` in a fresh process of this environment; the code that it ends with."""
    command = [sys.executable, "-m", module, *arguments]
    with log.open("wb") as out:
        return subprocess.run(command, cwd=ROOT, env=environment, stdout=out, stderr=out, check=False).returncode


def run_side(module: str, flags: Sequence[str], work: Path, log: Path) -> Outcome:
    """Let a contestant do the work; what it measured. Raises: SideFailed."""
    result = log.with_suffix(".json")
    run_module(module, [str(work), str(result), *flags], log)
    values: dict[str, Any] = json.loads(result.read_text("utf-8"))
    laps = tuple(Lap(**lap) for lap in values["laps"])
    peaks = (values["peak_bytes"], values["loaded_peak_bytes"])
    return Outcome(laps, *peaks, values["versions"], values["threads"])
