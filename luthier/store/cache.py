"""What Luthier keeps between runs: converted models, downloads, and whatever else can be made again.

Everything stands at `cache_root()/KIND/NAME`, such as `models/smollm2-135m`; all of it may be deleted at any time.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from luthier.errors import NotFound
from luthier.store.files import leftovers, remove_folder


@dataclass(frozen=True)
class CacheEntry:
    """One thing that can be deleted alone. `kind` is the folder it stands in, or `leftover` of an interrupted write."""

    kind: str
    name: str
    path: Path
    bytes: int
    last_used: datetime


def cache_root() -> Path:
    """The folder of the user's cache."""
    return Path.home() / ".cache" / "luthier"


def list_entries(root: Path) -> list[CacheEntry]:
    """All entries, by kind and name; none if there is no cache."""
    if not root.is_dir():
        return []
    kinds = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    files = sorted(path for path in root.iterdir() if path.is_file() and not path.name.startswith("."))
    entries = [_entry("index", path) for path in files]
    for kind in kinds:
        entries += list_kind(kind)
    for folder in [root, *kinds]:
        entries += [_entry("leftover", path) for path in leftovers(folder)]
    return entries


def list_kind(folder: Path) -> list[CacheEntry]:
    """The entries of one kind, by name; none if there is no such folder."""
    if not folder.is_dir():
        return []
    return [_entry(folder.name, path) for path in sorted(folder.iterdir()) if not path.name.startswith(".")]


def clear(root: Path, names: Sequence[str] | None = None) -> list[CacheEntry]:
    """Delete entries given as NAME, KIND/NAME, or KIND for all of a kind (None: all), and return what was deleted.

    Raises: NotFound, before anything is deleted, if a name stands for nothing.
    """
    entries = list_entries(root)
    chosen = entries if names is None else [entry for name in names for entry in _named(name, entries)]
    for entry in chosen:
        remove_folder(entry.path)
    return chosen


def mark_used(path: Path) -> None:
    """Note that an entry was used now. A cache that may only be read stays as it is."""
    with suppress(OSError):
        os.utime(path)


def _entry(kind: str, path: Path) -> CacheEntry:
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    num_bytes = sum(file.lstat().st_size for file in files)
    return CacheEntry(kind, path.name, path, num_bytes, datetime.fromtimestamp(path.lstat().st_mtime, UTC))


def _named(name: str, entries: list[CacheEntry]) -> list[CacheEntry]:
    found = [entry for entry in entries if name in (entry.name, f"{entry.kind}/{entry.name}")]
    found = found or [entry for entry in entries if name == entry.kind]
    if found:
        return found
    known = [entry.name for entry in entries if entry.kind != "leftover"]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    held = f"It holds {', '.join(known)}." if known else "It is empty."
    raise NotFound(
        f"The cache holds nothing called {name!r}. {held}",
        f"Did you mean {' or '.join(near)}?" if near else "`luthier cache list` shows what it holds.",
    )
