"""Every write to disk: whole or not at all.

A file is written under a hidden name beside its target, flushed to the disk, and renamed into place, so a reader finds
the old content or the new, never a mixture. A folder is filled under a hidden name, every file of it flushed, and
`manifest.json` (SHA-256 and size of each file) written last; `folder_fault` says what is wrong with one that is not whole.

Hidden names are `.NAME.OWNER.SALT.ROLE.partial`. OWNER says which process made it (`luthier.store.owners`); what a dead
process left is removed when the same target is written again. ROLE is `new` (being filled), `old` (renamed away to make
room) or `gone` (being deleted). A crash between the two renames of a replacement leaves `new` and `old` whole and the
name itself missing: `recover_folders` puts one of them back.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from luthier.errors import DataError, LuthierError, NotFound, ResourceError, UsageError
from luthier.store import disk
from luthier.store.owners import TAG_PATTERN, owner_is_alive, owner_tag

MANIFEST = "manifest.json"

_HIDDEN = re.compile(rf"\.(?P<name>.+)\.(?P<owner>{TAG_PATTERN})\.[0-9a-f]{{6}}\.(?P<role>new|old|gone)\.partial")
_FOREIGN_LEFTOVER_SECONDS = 24 * 3600  # after so long, what another machine was writing counts as left behind


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def write_bytes(path: Path, data: bytes) -> None:
    """Put `data` at `path`: afterwards, and after a crash at any moment, the file holds all of it or what it held before.

    Raises: DiskFull, ResourceError; the old content then stands.
    """
    write_pieces(path, (data,), len(data))


def write_pieces(path: Path, pieces: Iterable[bytes], num_bytes: int | None = None) -> None:
    """As `write_bytes`, for what need not be in memory all at once; what `pieces` raises leaves the old content too.

    num_bytes: how much it is, where that is known.
    """
    with disk.errors(path, num_bytes, only_disk=num_bytes is None):
        _make_parents(path)
        _remove_leftovers(path)
        hidden = _hidden_sibling(path, "new")
        try:
            with disk.open_for_write(hidden, "xb") as file:
                for piece in pieces:
                    disk.write(file, piece)
                disk.fsync(file.fileno())
            disk.replace(hidden, path)
        finally:
            _remove_quietly(hidden)
        disk.fsync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Put `text` at `path` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Put `value` at `path` as indented JSON, whole or not at all. NaN and infinities are written as `NaN`, `Infinity`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """What `write_json` wrote. Raises: NotFound; DataError, with the line, if it is not JSON."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound("There is no such file.", "Check the path.", file=str(path)) from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"This is not JSON: {error.msg}.", "Restore the file or delete it.", file=str(path), line=error.lineno
        ) from None
    except UnicodeDecodeError:
        raise DataError(
            "This is not JSON: it is not UTF-8 text.", "Restore the file or delete it.", file=str(path)
        ) from None
    except OSError as error:
        raise ResourceError(
            f"The file cannot be read: {error.strerror}.", "Check its permissions.", file=str(path)
        ) from None


def append_line(path: Path, text: str) -> None:
    """Add one line to the end of `path` and flush it to the disk. If that fails, the file is cut back to what it was.

    A last line without its newline (a writer died there) is ended first, so that the new line stands on its own.
    """
    assert "\n" not in text, "one line holds no newline"
    with disk.errors(path, len(text)):
        _make_parents(path)
        is_new = not path.exists()
        with disk.open_for_write(path, "ab+") as file:
            before = file.seek(0, os.SEEK_END)
            is_torn = False
            if before:
                file.seek(-1, os.SEEK_END)
                is_torn = file.read(1) != b"\n"
            try:
                disk.write(file, (("\n" if is_torn else "") + text + "\n").encode("utf-8"))
                disk.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    disk.truncate(file, before)
                raise
        if is_new:
            disk.fsync_folder(path.parent)


def reserve_file(path: Path, num_bytes: int) -> None:
    """Make a new file of `num_bytes` zeros that has its room on the disk already: for what is written through memory.

    Such a write that found no room would end the process without a word (SIGBUS). Raises: DiskFull, ResourceError; no file is
    left then.
    """
    with disk.errors(path, num_bytes):
        try:
            with disk.open_for_write(path, "xb") as file:
                disk.reserve(file, num_bytes)
        except OSError:
            _remove_quietly(path)
            raise


def remove_file(path: Path) -> None:
    """Delete a file or a link; nothing happens if it is not there."""
    with disk.errors(path):
        disk.unlink(path)


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal. Raises: NotFound, ResourceError."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound("There is no such file.", "Check the path.", file=str(path)) from None
    except OSError as error:
        raise ResourceError(
            f"The file cannot be read: {error.strerror}.", "Check its permissions and the disk.", file=str(path)
        ) from None


# ── folders ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def make_folder(path: Path, *, exist_ok: bool = True) -> bool:
    """Make a folder with its parents; return whether it is new. Raises: UsageError if it exists and may not."""
    with disk.errors(path):
        _make_parents(path)
        try:
            disk.mkdir_new(path)
        except FileExistsError:
            if exist_ok and path.is_dir():
                return False
            raise _exists_already(path) from None
        disk.fsync_folder(path.parent)
        return True


def write_folder(path: Path, fill: Callable[[Path], None], *, replace: bool = False) -> None:
    """Make the folder `path` out of what `fill(hidden_folder)` writes, with a manifest, whole or not at all.

    An existing folder is replaced only if `replace`: it is renamed away, the new one renamed in, then the old deleted.

    Raises: UsageError if `path` exists and `replace` is not set; DiskFull, ResourceError; what `fill` raises.
    """
    with disk.errors(path):
        _make_parents(path)
        if not os.path.lexists(path):
            _recover(path)
        if os.path.lexists(path) and not replace:
            raise _exists_already(path)
        _remove_leftovers(path)
        hidden = _hidden_sibling(path, "new")
    try:
        with disk.errors(path):
            disk.mkdir_new(hidden)
        with disk.errors(path, only_disk=True):
            fill(hidden)
        with disk.errors(path):
            _seal(hidden)
            _place(hidden, path, replace)
    except LuthierError as error:  # the hidden name means nothing to a person
        error.found = error.found.replace(str(hidden), str(path))
        error.file = error.file and error.file.replace(str(hidden), str(path))
        raise
    finally:
        _remove_quietly(hidden)


def folder_fault(path: Path, *, contents: bool = True) -> str | None:
    """What is wrong with a folder made by `write_folder`, as one sentence; None if it is whole.

    `contents` False compares sizes only, which takes no time; True reads every byte.
    """
    if not path.is_dir():
        return "it is not there" if not path.exists() else "it is not a folder"
    try:
        files = json.loads((path / MANIFEST).read_text("utf-8"))["files"]
        expected = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so it was never finished"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"its {MANIFEST} cannot be read"
    for name, (num_bytes, digest) in expected.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        found_bytes = file.stat().st_size
        if found_bytes != num_bytes:
            return f"{name} has {found_bytes:,} bytes instead of {num_bytes:,}"
        try:
            if contents and sha256_file(file) != digest:
                return f"{name} has other contents than when it was written (its SHA-256 differs)"
        except LuthierError as error:
            return f"{name} cannot be read: {error.found}"
    return None


def remove_folder(path: Path) -> None:
    """Delete a folder; a crash on the way leaves no half of it under its name. Nothing happens if it is not there."""
    with disk.errors(path):
        if not os.path.lexists(path):
            return
        if path.is_symlink() or not path.is_dir():
            disk.unlink(path)
            return
        hidden = _hidden_sibling(path, "gone")
        disk.replace(path, hidden)
        disk.fsync_folder(path.parent)
        disk.rmtree(hidden)


def recover_folders(parent: Path) -> list[Path]:
    """Put back the folders in `parent` whose replacement a crash cut in two; return their paths.

    Only what a dead process left and what is whole is put back, under a name that is missing; a new one goes before an old.
    """
    if not parent.is_dir():
        return []
    with disk.errors(parent):
        names = {
            match["name"] for entry in parent.iterdir() if (match := _HIDDEN.fullmatch(entry.name)) and entry.is_dir()
        }
        return [
            parent / name for name in sorted(names) if not os.path.lexists(parent / name) and _recover(parent / name)
        ]


def leftovers(parent: Path) -> list[Path]:
    """Hidden files and folders in `parent` that dead processes left half-written or half-deleted."""
    if not parent.is_dir():
        return []
    return sorted(
        entry
        for entry in parent.iterdir()
        if (match := _HIDDEN.fullmatch(entry.name)) and _is_left_behind(entry, match["owner"])
    )


def remove_leftovers(parent: Path) -> None:
    """Delete what dead processes left in `parent`; call `recover_folders` first, where whole folders may be among it."""
    for entry in leftovers(parent):
        _remove_quietly(entry)


def _seal(folder: Path) -> None:
    """Flush every file of a filled folder and write its manifest last; all files get the rights of the manifest."""
    paths = sorted(path for path in folder.rglob("*"))
    files = [path for path in paths if path.is_file()]
    for file in files:
        with file.open("rb") as handle:
            disk.fsync(handle.fileno())
    entries = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
        for file in files
    }
    with disk.open_for_write(folder / MANIFEST, "xb") as handle:
        disk.write(handle, (json.dumps({"format": 1, "files": entries}, indent=2) + "\n").encode("utf-8"))
        disk.fsync(handle.fileno())
        rights = os.fstat(handle.fileno()).st_mode & 0o777
    for file in files:
        file.chmod(rights)  # safetensors makes files that others may not read, whatever the user's umask
    for subfolder in [*(path for path in paths if path.is_dir()), folder]:
        disk.fsync_folder(subfolder)


def _place(hidden: Path, path: Path, replace: bool) -> None:
    """Rename a sealed folder to its name; an old one is first renamed away, and deleted last."""
    old = _hidden_sibling(path, "old")
    is_away = False
    is_placed = False
    try:
        if replace and os.path.lexists(path):
            disk.replace(path, old)
            is_away = True
        disk.replace(hidden, path)
        is_placed = True
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR} and not is_away:
            raise _exists_already(path) from None
        raise
    finally:
        if is_away and not is_placed:
            with suppress(OSError):
                disk.replace(old, path)
    disk.fsync_folder(path.parent)
    _remove_quietly(old)


def _make_parents(path: Path) -> None:
    """Make the folders that `path` will stand in, and flush their names."""
    missing = [folder for folder in path.parents if not folder.exists()]
    if missing:
        disk.mkdir(path.parent)
        for folder in reversed(missing):
            disk.fsync_folder(folder.parent)


def _exists_already(path: Path) -> UsageError:
    return UsageError(f"{path} exists already.", "Choose another name, or delete it first.")


def _recover(path: Path) -> bool:
    """Rename a whole hidden folder of a dead process to the missing `path`; say whether there was one."""
    for role in ("new", "old"):
        for entry, match in _hidden_of(path):
            is_candidate = match["role"] == role and entry.is_dir() and _is_left_behind(entry, match["owner"])
            if is_candidate and folder_fault(entry) is None:
                disk.replace(entry, path)
                disk.fsync_folder(path.parent)
                return True
    return False


# ── hidden names ────────────────────────────────────────────────────────────────────────────────────────────────────


def _hidden_sibling(path: Path, role: Literal["new", "old", "gone"]) -> Path:
    return path.parent / f".{path.name}.{owner_tag()}.{secrets.token_hex(3)}.{role}.partial"


def _hidden_of(path: Path) -> list[tuple[Path, re.Match[str]]]:
    """The hidden entries beside `path` that were made for it."""
    found = [(entry, _HIDDEN.fullmatch(entry.name)) for entry in sorted(path.parent.iterdir())]
    return [(entry, match) for entry, match in found if match and match["name"] == path.name]


def _is_left_behind(entry: Path, owner: str) -> bool:
    """Whether nobody will go on with a hidden entry."""
    alive = owner_is_alive(owner)
    if alive is not None:
        return not alive
    try:
        return time.time() - entry.lstat().st_mtime > _FOREIGN_LEFTOVER_SECONDS
    except FileNotFoundError:
        return False


def _remove_leftovers(path: Path) -> None:
    """Remove what dead processes left of earlier writes to `path`, but never the only whole copy of it."""
    is_there = os.path.lexists(path)
    for entry, match in _hidden_of(path):
        if _is_left_behind(entry, match["owner"]) and (is_there or match["role"] != "old"):
            _remove_quietly(entry)


def _remove_quietly(path: Path) -> None:
    """Delete a hidden file or folder if that can be done; what stays behind is removed by a later write."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            disk.rmtree(path)
        else:
            disk.unlink(path)


# ── one process at a time ───────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def locked(
    path: Path, timeout_seconds: float = 3600, announce: Callable[[str], None] = lambda sentence: None
) -> Iterator[None]:
    """Hold `path` alone among all threads and processes of this machine; the lock ends with its process.

    Raises: ResourceError if another holds it for longer than `timeout_seconds`.
    """
    from filelock import FileLock, Timeout  # costs 50 ms, so only where a lock is taken

    lock = FileLock(path.parent / f".{path.name}.lock")
    with disk.errors(path):
        _make_parents(path)
        try:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                announce(
                    f"Another process is busy with {path}; waiting for it, at most {timeout_seconds:,.0f} seconds."
                )
                lock.acquire(timeout=timeout_seconds)
        except Timeout:
            raise ResourceError(
                f"Another process has been busy with {path} for more than {timeout_seconds:,.0f} seconds.",
                "Wait for it to end, or end it, then run the command again.",
            ) from None
    try:
        yield
    finally:
        lock.release()
