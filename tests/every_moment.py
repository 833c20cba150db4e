"""A run's folder at every moment at which its process, or the power, might have ended."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from failing_disk import OPERATIONS
from tiny_runs import files_of

from luthier import run
from luthier.store import disk
from luthier.training import checkpoint


@dataclass
class Moments:
    """The folder of a run as it was at every moment at which the process might have ended.

    saved: for each moment, the last checkpoint that had been saved. flushed: for each inode that was written to, how many of
    its bytes are on the disk itself; a loss of power takes the rest away.
    """

    run: Path
    into: Path
    num_operations: int = 0
    folders: list[Path] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)
    seen: set[tuple[tuple[str, bytes], ...]] = field(default_factory=set)
    flushed: dict[int, int] = field(default_factory=dict)
    last_saved: int = 0

    def take(self) -> None:
        """Keep the folder as it is, and as a loss of power would leave it."""
        self.num_operations += 1
        if not self.run.is_dir():
            return
        written = [path for path in self.run.rglob("*") if path.is_file()]
        flushed = {path: self.flushed.get(path.stat().st_ino, path.stat().st_size) for path in written}
        for loses_power in (False, True):
            copied = self.into / str(len(self.folders))
            shutil.copytree(self.run, copied)
            for path in written if loses_power else ():
                os.truncate(copied / path.relative_to(self.run), flushed[path])
            state = tuple((re.sub(r"\.[0-9a-f]{6}\.(new|old|gone)", "", n), b) for n, b in files_of(copied).items())
            if state in self.seen:
                shutil.rmtree(copied)
                continue
            self.seen.add(state)
            self.folders.append(copied)
            self.saved.append(self.last_saved)

    def watching(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        """An operation on the disk that first keeps the moment before it, and one from its midst if it has any."""

        def watched(*args: Any) -> Any:
            self.take()
            if name == "write":
                file, data = args
                status = os.fstat(file.fileno())
                self.flushed.setdefault(status.st_ino, status.st_size)
                operation(file, data[: len(data) // 2])
                self.take()
                return operation(file, data[len(data) // 2 :])
            if name == "save_file":
                args[1].write_bytes(b"half")
                self.take()
                args[1].unlink()
                operation(*args)
                self.flushed[args[1].stat().st_ino] = 0
                return None
            if name == "rmtree":
                next(path for path in sorted(args[0].rglob("*")) if path.is_file()).unlink()
                self.take()
            if name == "fsync":
                self.flushed.pop(os.fstat(args[0]).st_ino, None)
            return operation(*args)

        return watched


def every_moment_of(attempt: Callable[[], object], folder: Path, into: Path) -> Moments:
    """Carry out an attempt whole, and keep every moment of it."""
    moments = Moments(folder, into)

    def save(folder: Path, state: checkpoint.Checkpoint) -> Path:
        path = checkpoint.save_checkpoint(folder, state)
        moments.last_saved = state.step
        return path

    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            patch.setattr(disk, name, moments.watching(name, vars(disk)[name]))
        patch.setattr(checkpoint, "save_file", moments.watching("save_file", checkpoint.save_file))
        patch.setattr(run, "save_checkpoint", save)
        attempt()
        moments.take()
    return moments
