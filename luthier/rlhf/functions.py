"""Rewards from Python that the user wrote, in a process of its own.

The function is the user's, and may read files, import what it likes and keep things between calls; so it has a whole process,
which lives as long as the run. What it cannot do is hang or end the run: when it takes too long its process is stopped, and the
run ends with a sentence and a saved state.
"""

from __future__ import annotations

import json
import math
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from luthier.errors import NotFound, RewardFault
from luthier.evaluation.grading import Grade
from luthier.rlhf.worth import Answer

_CHILD = Path(__file__).with_name("function_child.py")
_START_SECONDS = 120.0  # to start Python and import what the file imports
_MEND = "Mend the file; 'luthier resume' then goes on from the last saved step."


class FunctionProcess:
    """The process of one file; it is started at the first answers, and again after it was stopped."""

    def __init__(self, file: Path, timeout_seconds: float) -> None:
        """Raises: NotFound, if there is no such file."""
        if not file.is_file():
            raise NotFound(
                f"There is no reward file {file}.", "Check objective.rewards.function.", field="objective.rewards"
            )
        self._file = file.absolute()
        self._timeout_seconds = timeout_seconds
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def __call__(self, answers: Sequence[Answer]) -> list[Grade]:
        """The numbers of the answers. Raises: RewardFault, as `rewards` has it."""
        if self._process is None:
            self._start()
        asked = {
            "prompts": [answer.prompt for answer in answers],
            "answers": [answer.text for answer in answers],
            "rows": [dict(answer.row) for answer in answers],
        }
        said = self._asked(json.dumps(asked, default=str), self._timeout_seconds)
        return self._grades(said.get("scores"), len(answers))

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(_CHILD), str(self._file)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, cwd=self._file.parent,
        )  # fmt: skip
        self._asked(None, _START_SECONDS)

    def _asked(self, line: str | None, seconds: float) -> dict[str, Any]:
        """What the process says to a line; to none, when it begins. Raises: RewardFault."""
        try:
            said = self._exchange(line, seconds)
        except BaseException:
            self._stop()
            raise
        if "error" in said:
            self._stop()
            raise RewardFault(f"reward() failed: {said['error']}", _MEND, file=str(self._file), line=said.get("line"))
        return said

    def _exchange(self, line: str | None, seconds: float) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        if line is not None:  # from a thread: a process that does not read would hold the writer up
            threading.Thread(target=_write, args=(process.stdin, line), daemon=True).start()
        text = _read_line(process.stdout.fileno(), time.monotonic() + seconds)
        if text is None:
            raise RewardFault(
                f"reward() took more than {seconds:g} s.", f"Make it faster, or raise timeout_seconds. {_MEND}",
                file=str(self._file), field="objective.rewards.timeout_seconds",
            )  # fmt: skip
        if not text:
            code = process.wait()
            raise RewardFault(
                f"The process of reward() ended by itself (exit code {code}).", _MEND, file=str(self._file)
            )
        said: dict[str, Any] = json.loads(text)
        return said

    def _grades(self, scores: Any, count: int) -> list[Grade]:
        if not isinstance(scores, list) or len(scores) != count:
            given = f"a list of {len(scores)}" if isinstance(scores, list) else repr(scores)[:100]
            raise RewardFault(
                f"reward() gave {given} for {count} answers.",
                f"It must give a list with a number for each answer. {_MEND}",
                file=str(self._file),
            )
        for index, score in enumerate(scores):
            is_number = isinstance(score, int | float) and not isinstance(score, bool)
            if score is not None and not (is_number and math.isfinite(score)):
                raise RewardFault(
                    f"reward() gave {score!r} for answer {index} of {count}.",
                    f"It must give finite numbers, or None for an answer that cannot be judged. {_MEND}",
                    file=str(self._file),
                )
        return [Grade(None, "reward() gave None") if score is None else Grade.of(score) for score in scores]

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


def _write(pipe: IO[bytes], line: str) -> None:
    with suppress(OSError, ValueError):  # the process has ended, which its answer will show
        pipe.write(line.encode() + b"\n")
        pipe.flush()


def _read_line(descriptor: int, deadline: float) -> bytes | None:
    """A line from a pipe; empty at its end, None once the time is over."""
    read = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while not read.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return None
            piece = os.read(descriptor, 1 << 16)
            if not piece:
                return b""
            read += piece
    return read
