"""The program in processes of their own, which a test may end as roughly as it likes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from forks import Surroundings, forked

PROGRAM = Path(sys.executable).with_name("luthier")
PATIENCE_SECONDS = 900


def environment(home: Path) -> dict[str, str]:
    """This process's environment with another home, one thread, and nothing that keeps libraries off the network."""
    dropped = ("HF_", "TRANSFORMERS_", "LUTHIER_", "PYTEST_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return {**kept, "HOME": str(home), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


@dataclass(frozen=True)
class Started:
    """A process that runs, and the files that hold what it said."""

    process: BaseProcess
    within: Surroundings

    @property
    def pid(self) -> int:
        """Its number."""
        assert self.process.pid is not None
        return self.process.pid

    def poll(self) -> int | None:
        """The exit code, minus the number of a signal that nobody caught; None while it runs."""
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)


def start(*words: str | Path, folder: Path) -> Started:
    """Begin `luthier WORDS` in a folder, which is its home too; `end_of` ends the wait for it."""
    said = Path(tempfile.mkdtemp(prefix="said-", dir=folder.parent))
    arguments = [str(PROGRAM), *map(str, words)]
    within = Surroundings(folder, environment(folder), arguments, said / "out", said / "err")
    return Started(forked(_program, within=within), within)


def _program() -> None:
    from luthier.cli.main import main

    sys.exit(main())


def luthier(*words: str | Path, folder: Path, given: str = "") -> tuple[int, str, str]:
    """How `luthier WORDS` ends with `given` on standard in: as `end_of` says it."""
    done = subprocess.run(
        [str(PROGRAM), *map(str, words)],
        cwd=folder,
        env=environment(folder),
        input=given,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def end_of(started: Started) -> tuple[int, str, str]:
    """The exit code (minus the number of a signal that nobody caught), standard out and standard error."""
    started.process.join(PATIENCE_SECONDS)
    code = started.poll()
    if code is None:
        started.send_signal(signal.SIGKILL)
        raise AssertionError(f"it runs on: {started.within.err.read_text('utf-8')}")
    return code, started.within.out.read_text("utf-8"), started.within.err.read_text("utf-8")


def signal_at(process: Started, number: int, moment: Callable[[], bool]) -> None:
    """Send a signal at a moment. The process stands still while the moment is looked at, so that it is not missed."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if moment():
            process.send_signal(signal.SIGSTOP)
            if moment():
                process.send_signal(number)
                process.send_signal(signal.SIGCONT)
                return
            process.send_signal(signal.SIGCONT)
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    raise AssertionError(f"the moment did not come: {end_of(process)}")


def wait_for(process: Started, moment: Callable[[], bool]) -> None:
    """Wait until a moment has come."""
    signal_at(process, signal.SIGCONT, moment)


def last_step(run: Path) -> int:
    """The last step in metrics.jsonl; 0 without any."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return int(json.loads(lines[-1])["step"]) if lines and lines[-1].endswith("}") else 0


def saved_steps(run: Path) -> list[int]:
    """The steps of the checkpoints that bear their name, in order."""
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))


def is_owner(run: Path, process: Started) -> bool:
    """Whether the run's status names this process."""
    path = run / "status.json"
    return path.is_file() and f"-{process.pid}-" in path.read_text(encoding="utf-8")
