"""A disk that refuses, or a process that dies, at the n-th operation that Luthier asks of the disk."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from luthier.store import disk, files
from luthier.training import checkpoint

OPERATIONS = (
    "open_for_write",
    "write",
    "reserve",
    "truncate",
    "fsync",
    "fsync_folder",
    "replace",
    "mkdir",
    "mkdir_new",
    "unlink",
    "rmtree",
)
FREEING = ("truncate", "unlink", "rmtree")  # these work on a full disk

Kind = Literal["once", "full", "crash"]


class Crash(BaseException):
    """The process died here: nothing catches this, and every later operation raises it again."""


@dataclass
class Fault:
    """What happened: how many operations were asked for, and whether the fault struck."""

    at: int
    kind: Kind
    num_operations: int = 0
    struck: bool = False

    def strikes(self, name: str) -> bool:
        """Count one operation, and say whether it fails."""
        self.num_operations += 1
        is_due = self.num_operations == self.at
        if self.num_operations > self.at:
            is_due = self.kind == "crash" or (self.kind == "full" and name not in FREEING)
        self.struck = self.struck or is_due
        return is_due


FailingAt = Callable[[int, Kind], AbstractContextManager[Fault]]


@pytest.fixture
def failing_at(monkeypatch: pytest.MonkeyPatch) -> FailingAt:
    """`with failing_at(n, kind) as fault`: the n-th operation on the disk fails.

    once: it alone finds no room. full: from it on there is no room, though deleting works. crash: the process dies there.
    After full and crash the process counts as ended, so that what it left may be recovered or removed.
    """

    @contextmanager
    def failing(n: int, kind: Kind) -> Iterator[Fault]:
        fault = Fault(n, kind)
        with monkeypatch.context() as patch:
            for name in OPERATIONS:
                patch.setattr(disk, name, _failing(name, vars(disk)[name], fault))
            patch.setattr(checkpoint, "save_file", _failing("save_file", checkpoint.save_file, fault))
            yield fault
        if kind != "once":
            monkeypatch.setattr(files, "owner_is_alive", lambda tag: False)

    return failing


def _failing(name: str, operation: Callable[..., Any], fault: Fault) -> Callable[..., Any]:
    def wrapped(*args: Any) -> Any:
        is_first = not fault.struck
        if not fault.strikes(name):
            return operation(*args)
        if is_first:
            _half_done(name, args)
        if fault.kind == "crash":
            raise Crash
        raise OSError(errno.ENOSPC, "No space left on device")

    return wrapped


def _half_done(name: str, args: tuple[Any, ...]) -> None:
    """What an operation that is not one moment may have done before it failed."""
    if name == "write":
        file, data = args
        file.write(data[: len(data) // 2])
    if name == "save_file":
        args[1].write_bytes(b"half")
    if name == "rmtree":
        folder: Path = args[0]
        next(path for path in sorted(folder.rglob("*")) if path.is_file()).unlink()


def every_fault(kind: Kind, failing_at: FailingAt, attempt: Callable[[], None], check: Callable[[Fault], None]) -> int:
    """Attempt with the fault at operation 1, 2, 3 … until it no longer strikes; check after each. Returns how many struck."""
    for n in range(1, 500):
        with failing_at(n, kind) as fault:
            try:
                attempt()
            except (Crash, Exception):
                if not fault.struck:
                    raise
        check(fault)
        if not fault.struck:
            return n - 1
    raise AssertionError("the attempt never came to an end")
