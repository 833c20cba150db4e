"""Programs that nobody has read, run with limits: time, memory, disk, and no network.

A process of its own, in an empty folder that is removed, without the environment of the one that starts it. The system bounds
its processor time, memory and the size of its files; it is stopped, with all that it started, when its wall time is over.
Within the process an audit hook refuses sockets, other programs, and files outside its folder that would be written; where the
system lets us, it also gets a network of its own that leads nowhere. This keeps out what a model writes by mistake, and most of
what it could write on purpose. It is not a wall against somebody who knows how to get around such hooks: for programs of
strangers use a virtual machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from luthier.types import Settings

_LAUNCHER = Path(__file__).with_name("launcher.py")
_FILE_BYTES = 64 << 20
_SHOWN = 2000  # characters of what a program printed that are kept for people


class Limits(Settings):
    """What a program may use."""

    seconds: float = Field(10.0, gt=0, le=600, description="Most wall seconds.")
    memory_mb: int = Field(2048, ge=64, description="Most memory, in MB.")


@dataclass(frozen=True)
class Ended:
    """How a program ended. said: what it reported (see `run_limited`); printed: the end of what it printed."""

    how: Literal["done", "failed", "time", "memory"]
    said: tuple[Any, ...]
    printed: str


def run_limited(program: str, given: Any, limits: Limits) -> Ended:
    """Run Python text that defines `main(given, report)`.

    Args:
        given: a JSON value that `main` gets; what JSON does not have, such as the dates of a Parquet file, comes as text.

    What `main` passes to `report` (JSON values) comes back in order, even from a program that is then stopped. The program's
    own prints cannot be taken for reports, nor can reports be made by code that does not hold the function `report`.
    """
    mark = secrets.token_hex(16)
    request = {"program": program, "given": given, "mark": mark, "memory": limits.memory_mb << 20, "file": _FILE_BYTES}
    with tempfile.TemporaryDirectory(prefix="luthier-limited-", ignore_cleanup_errors=True) as folder:
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": folder,
            "TMPDIR": folder,
            "OMP_NUM_THREADS": "1",
            "PYTHONHASHSEED": "0",
        }
        request["seconds"] = limits.seconds
        with Path(folder, ".printed").open("w+b") as printed:
            process = subprocess.Popen(
                [sys.executable, "-I", str(_LAUNCHER)], stdin=subprocess.PIPE, stdout=printed, stderr=subprocess.STDOUT,
                cwd=folder, env=environment, start_new_session=True,
            )  # fmt: skip
            is_late = _wait(process, json.dumps(request, default=str).encode(), limits.seconds)
            printed.seek(0)
            text = printed.read().decode("utf-8", "replace")
    lines = text.splitlines()
    said = tuple(json.loads(line.removeprefix(mark)) for line in lines if line.startswith(mark))
    shown = "\n".join(line for line in lines if not line.startswith(mark))[-_SHOWN:]
    if is_late or process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return Ended("time", said, shown)
    if "MemoryError" in shown[-300:]:
        return Ended("memory", said, shown)
    return Ended("done" if process.returncode == 0 else "failed", said, shown)


def _wait(process: subprocess.Popen[bytes], request: bytes, seconds: float) -> bool:
    """Hand over the request and wait for the end; stops the process and all it started. Whether it took too long."""
    try:
        process.communicate(request, timeout=seconds)
    except subprocess.TimeoutExpired:
        return True
    finally:
        with contextlib.suppress(ProcessLookupError):  # nothing of it is left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return False
