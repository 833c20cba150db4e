"""Rows of bytes kept on disk under keys.

    rows.bin    all rows, of one width, in the order in which they came
    index.jsonl a line an entry: its key, where it begins, how many rows it has, and their CRC-32

An entry counts once its line is written, and the line is written after its rows. What a dead process or a lost disk cache
left half written fails its checksum, and is as if it had never been there.

An entry is read into memory of its own: through a map of the file, every page that was ever read would count as held by
the process, until the system is short of memory, and it is copied in either case.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from luthier.errors import DiskFull
from luthier.store.files import append_line, make_folder

ROWS, INDEX = "rows.bin", "index.jsonl"
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class _Entry:
    start: int
    count: int
    crc: int


class RowCache:
    """A store of entries of rows, for one process and its threads."""

    def __init__(self, folder: Path, row_bytes: int, lessen: str | None = None) -> None:
        """Open the cache in a folder, with what is in it from before.

        row_bytes: the width of every row. lessen: what a user can do for it to need less disk; None for nothing.
        """
        make_folder(folder)
        self._folder = folder
        self._row_bytes = row_bytes
        self._lessen = lessen
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._checked: set[str] = set()
        self._end = 0
        self._file = os.open(folder / ROWS, os.O_RDWR | os.O_CREAT, 0o644)
        self._read_index()

    def get(self, key: str) -> Bytes | None:
        """The rows of an entry, shape (count, row_bytes); None if there is no whole entry of that key."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            rows = self._rows(entry)
            if rows is None or (key not in self._checked and _crc(rows) != entry.crc):
                del self._entries[key]
                return None
            self._checked.add(key)
            return rows

    def put(self, key: str, rows: Bytes) -> None:
        """Keep an entry; one that is there already stays. Raises DiskFull."""
        data = np.ascontiguousarray(rows)
        assert data.ndim == 2
        assert data.shape[1] == self._row_bytes
        with self._lock:
            if key in self._entries:
                return
            entry = _Entry(self._end, len(data), _crc(data))
            self._write(data.data.cast("B"), entry.start * self._row_bytes)
            line = {"key": key, "start": entry.start, "count": entry.count, "crc": entry.crc}
            append_line(self._folder / INDEX, json.dumps(line))
            self._entries[key] = entry
            self._checked.add(key)
            self._end += entry.count

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)

    def __len__(self) -> int:
        return len(self._entries)

    def _read_index(self) -> None:
        index = self._folder / INDEX
        for text in index.read_text(encoding="utf-8").splitlines() if index.is_file() else ():
            try:
                line = json.loads(text)
                entry = _Entry(int(line["start"]), int(line["count"]), int(line["crc"]))
            except (json.JSONDecodeError, KeyError, TypeError, ValueError):
                continue  # the line that a dead process was writing
            self._entries[str(line["key"])] = entry
            self._end = max(self._end, entry.start + entry.count)

    def _rows(self, entry: _Entry) -> Bytes | None:
        rows = np.empty((entry.count, self._row_bytes), np.uint8)
        left, offset = rows.data.cast("B"), entry.start * self._row_bytes
        while left:
            count = os.preadv(self._file, [left], offset)
            if count == 0:
                return None  # the file ends before the entry does
            left, offset = left[count:], offset + count
        return rows

    def _write(self, data: memoryview, offset: int) -> None:
        try:
            while data:
                written = os.pwrite(self._file, data, offset)
                data, offset = data[written:], offset + written
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(
                    f"The disk is full: {self._folder / ROWS}.",
                    "Free some space." if self._lessen is None else f"Free some space, or {self._lessen}.",
                ) from error
            raise


def _crc(rows: Bytes) -> int:
    return zlib.crc32(rows.data)
