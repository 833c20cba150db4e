"""The hash that tells one model's weights from another's, remembered so that it is read from the disk once."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from luthier.errors import LuthierError
from luthier.store.files import read_json, sha256_file, write_json

INDEX = "fingerprints.json"


def fingerprint_files(files: list[Path], root: Path) -> str:
    """The SHA-256 over the names and contents of `files`, in order.

    Each file's own hash is kept in `root/fingerprints.json` by its path, size and time of change, so a second call reads
    none of them again.
    """
    known = _read_index(root / INDEX)
    fresh: dict[str, Any] = {}
    digests = []
    for file in files:
        path = file.resolve()
        state = path.stat()
        entry = known.get(str(path))
        if not (
            isinstance(entry, dict)
            and (entry.get("bytes"), entry.get("mtime_ns")) == (state.st_size, state.st_mtime_ns)
        ):
            entry = {"bytes": state.st_size, "mtime_ns": state.st_mtime_ns, "sha256": sha256_file(path)}
            fresh[str(path)] = entry
        digests.append(f"{file.name} {entry['sha256']}\n")
    if fresh:
        kept = {name: entry for name, entry in known.items() if Path(name).exists()}
        with suppress(LuthierError):  # a cache that cannot be written costs time, nothing else
            write_json(root / INDEX, kept | fresh)
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = read_json(path)
    except LuthierError:
        return {}
    return index if isinstance(index, dict) else {}
