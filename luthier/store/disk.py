"""The few things asked of the disk, one function each, and what its refusals mean in words.

Nothing else in the package writes; a test makes any of these functions fail to show that no write can be cut in two.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

from safetensors import SafetensorError

from luthier.errors import DiskFull, ResourceError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_BROKEN = {errno.EFBIG, errno.EIO}
_UNKNOWN = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
"""What a file system says that cannot keep room."""
_AT_ONCE = 2**20


def open_for_write(path: Path, mode: Literal["xb", "ab+"]) -> IO[bytes]:
    """An unbuffered file: new ("xb"), or to be read and added to ("ab+")."""
    return path.open(mode, buffering=0)


def write(file: IO[bytes], data: bytes) -> None:
    """Write all of `data`, however many calls that takes."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def reserve(file: IO[bytes], num_bytes: int) -> None:
    """Make a new file `num_bytes` zeros long whose room on the disk is its own, so that no later write into it finds none."""
    if shutil.disk_usage(file.name).free < num_bytes:  # else the system may fill the disk before it refuses
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if sys.platform == "linux":
        try:
            os.posix_fallocate(file.fileno(), 0, num_bytes)
            return
        except OSError as error:
            if error.errno not in _UNKNOWN:
                raise
    zeros = bytes(min(_AT_ONCE, num_bytes))
    for start in range(0, num_bytes, _AT_ONCE):
        write(file, zeros[: num_bytes - start])


def truncate(file: IO[bytes], num_bytes: int) -> None:
    """Cut a file to its first `num_bytes` bytes."""
    file.truncate(num_bytes)


def fsync(descriptor: int) -> None:
    """Wait until what was written is on the disk itself."""
    os.fsync(descriptor)


def fsync_folder(folder: Path) -> None:
    """Flush a folder's list of names; systems that cannot (Windows, some network disks) do without."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(descriptor)


def replace(source: Path, target: Path) -> None:
    """Rename, in one moment; a file or an empty folder at the target is replaced."""
    os.replace(source, target)


def mkdir(folder: Path) -> None:
    """Make a folder and its parents, where missing."""
    folder.mkdir(parents=True, exist_ok=True)


def mkdir_new(folder: Path) -> None:
    """Make one folder that must not exist."""
    folder.mkdir()


def unlink(path: Path) -> None:
    """Delete a file or link, if it is there."""
    path.unlink(missing_ok=True)


def rmtree(folder: Path) -> None:
    """Delete a folder and all in it."""
    shutil.rmtree(folder)


@contextmanager
def errors(path: Path, num_bytes: int | None = None, *, only_disk: bool = False) -> Iterator[None]:
    """Turn what the operating system (or safetensors) says about writing `path` into DiskFull or ResourceError.

    `num_bytes` is how much was to be written, where that is known. `only_disk` lets errors pass that speak of neither room
    nor permission nor the device: around code that also reads other files.
    """
    try:
        yield
    except OSError as error:
        refusal = _refusal(path, error.errno or 0, num_bytes)
        if refusal is None and only_disk:
            raise
        raise refusal or _unwritable(path, error.strerror or str(error)) from error
    except SafetensorError as error:  # carries the system's error number in its text alone
        match = re.search(r"os error (\d+)", str(error))
        if match is None:
            raise
        raise _refusal(path, int(match[1]), num_bytes) or _unwritable(path, os.strerror(int(match[1]))) from error


def _refusal(path: Path, code: int, num_bytes: int | None) -> ResourceError | None:
    """What an error number says about the disk; None if it says nothing about it."""
    if code in _FULL:
        return _disk_full(path, num_bytes, is_quota=code == errno.EDQUOT)
    if code in _FORBIDDEN:
        return ResourceError(
            f"{path} cannot be written: {os.strerror(code)}.",
            "Give yourself the right to write there, or choose another place with --out.",
        )
    return _unwritable(path, os.strerror(code)) if code in _BROKEN else None


def _unwritable(path: Path, reason: str) -> ResourceError:
    return ResourceError(f"{path} cannot be written: {reason}.", "Check the path and the disk.")


def _disk_full(path: Path, num_bytes: int | None, *, is_quota: bool) -> DiskFull:
    folder = next(parent for parent in [path.absolute(), *path.absolute().parents] if parent.exists())
    free = shutil.disk_usage(folder).free
    limit = "the quota is used up" if is_quota else "the disk is full"
    needed = "" if num_bytes is None else f", {num_bytes:,} needed"
    return DiskFull(
        f"{path} could not be written: {limit} ({free:,} bytes free{needed}). Nothing is left half-written.",
        "Free some room (`luthier cache list` shows what Luthier keeps) or write to another disk with --out, then run the command again.",
    )
