"""Where sets that have become tokens are kept: `cache/tokens/NAME-KEY`, a folder each.

The key is a hash of all that decides the tokens: the files' contents and names, how rows are read and rendered, the tokenizer and
its template, what the objective learns from a row, and the versions of what computes it. A folder is written under another name
and renamed once it is whole, with a manifest of hashes; two processes that want the same set make it once. The sets used least
recently are deleted when all together take more room than `data.cache_gb`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import transformers
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from luthier.data.settings import FormatName
from luthier.data.tokens.columns import DTYPES, Kept
from luthier.errors import NotFound
from luthier.store import disk
from luthier.store.cache import list_kind, mark_used
from luthier.store.files import folder_fault, read_json, remove_folder, sha256_file, write_folder, write_json
from luthier.types import RowLengths
from luthier.version import __version__

KIND = "tokens"
FORMAT = 3
META = "set.json"
_BYTES_TO_READ_AGAIN = 10**9
"""A set of more is not read through each time it is opened: only the sizes of its files are compared with its manifest."""


class TooMuch(Exception):
    """A set would take more room than the cache may."""


@dataclass(frozen=True)
class Meta:
    """What is kept of a set beside its columns: what was said as it was read, and its form. files: those that rows come from."""

    said: tuple[str, ...]
    notes: tuple[str, ...]
    format: FormatName
    reason: str
    sha256: str
    labels: tuple[str, ...]
    files: tuple[str, ...]
    lengths: RowLengths


Put = Callable[[str, NDArray[Any]], None]


@dataclass(frozen=True)
class TokenCache:
    """The folder of all sets, and the room that they may take together."""

    folder: Path
    limit_bytes: int

    def find(self, name: str) -> tuple[Kept, Meta] | str | None:
        """The set of a name; what is wrong with it, if it is broken; None, if it is not there."""
        path = self.folder / name
        if not path.exists():
            return None
        try:
            num_bytes = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
            fault = folder_fault(path, contents=num_bytes <= _BYTES_TO_READ_AGAIN)
            if fault is not None:
                return fault
            values = read_json(path / META)
            columns = {each: _mapped(path / each, dtype) for each, dtype in DTYPES.items()}
        except (FileNotFoundError, NotFound):
            return "it was deleted just now"
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        meta = Meta(**{**given, "lengths": RowLengths(**given["lengths"])})
        mark_used(path)
        return Kept(columns, meta.files), meta

    def write(self, name: str, fill: Callable[[Put], Meta]) -> None:
        """Keep a set. fill: hands over its columns piece by piece, then says what is to be kept beside them.

        Raises: TooMuch; DiskFull, ResourceError; what `fill` raises. Nothing is left of it then.
        """
        write_folder(self.folder / name, lambda folder: self._fill(folder, fill), replace=True)
        self.make_room(keep=name)

    def _fill(self, folder: Path, fill: Callable[[Put], Meta]) -> None:
        written = 0
        with ExitStack() as stack:
            files = {name: stack.enter_context(disk.open_for_write(folder / name, "xb")) for name in DTYPES}

            def put(name: str, column: NDArray[Any]) -> None:
                nonlocal written
                written += column.nbytes
                if written > self.limit_bytes:
                    raise TooMuch
                disk.write(files[name], np.ascontiguousarray(column).tobytes())

            meta = fill(put)
        write_json(folder / META, asdict(meta))

    def make_room(self, keep: str) -> None:
        """Delete the sets used least recently until all take no more room than they may; one is kept in any case."""
        try:
            entries = sorted(list_kind(self.folder), key=lambda entry: entry.last_used, reverse=True)
        except FileNotFoundError:  # another process makes room
            return
        total = sum(entry.bytes for entry in entries if entry.name == keep)
        for entry in entries:
            if entry.name != keep:
                total += entry.bytes
                if total > self.limit_bytes:
                    remove_folder(entry.path)


def _mapped(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    """A file as an array, read as far as it is asked for."""
    if path.stat().st_size == 0:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r").view(np.ndarray)  # whose pieces are cheaper


# ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def set_name(called: str, parts: Sequence[Any]) -> str:
    """The name of a set after its file, with the hash of all that decides its tokens."""
    versions = (FORMAT, __version__, transformers.__version__, tokenizers.__version__)
    text = json.dumps([*versions, *parts], sort_keys=True, default=str)
    stem = re.sub(r"[^\w-]+", "-", called).strip("-")[:40] or "data"
    return f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"


def file_keys(files: Sequence[tuple[str, Path]], beside: Sequence[str]) -> Iterator[tuple[str, str, int]]:
    """Each file's name and the hash of its content, and of the files of these names that stand beside it."""
    for name, path in files:
        yield name, sha256_file(path), path.stat().st_size
        for other in beside:
            if (path.with_name(other)).is_file():
                yield other, sha256_file(path.with_name(other)), 0


def tokenizer_key(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of all that a tokenizer does to a text."""
    given = {
        "class": type(tokenizer).__name__,
        "backend": tokenizer.backend_tokenizer.to_str(),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "template": tokenizer.chat_template,
        "inputs": list(tokenizer.model_input_names),
    }
    return hashlib.sha256(json.dumps(given, sort_keys=True, default=str).encode()).hexdigest()
