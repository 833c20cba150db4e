"""The content of a data file: unpacked where it is packed, and as UTF-8 where it is UTF-16; never whole in memory."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from luthier.data.reading.rows import OnFault
from luthier.errors import DataError

PACKINGS: dict[str, str] = {
    ".gz": "gzip",
    ".zst": "zstd",
    ".zstd": "zstd",
    ".bz2": "bzip2",
    ".xz": "xz",
}
"""Endings of files that were packed, and with what."""

_MARKS: tuple[tuple[bytes, str], ...] = (
    (rb"\x1f\x8b", "gzip"),
    (rb"\x28\xb5\x2f\xfd", "zstd"),
    (rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", "bzip2"),
    (rb"\xfd7zXZ\x00", "xz"),
)
"""What packed files begin with."""

_CHUNK = 1 << 16
_BEGINNING = 1 << 16


@dataclass(frozen=True)
class Content:
    """What a file holds. `name` is what a user calls it; `packing` and `is_utf16` say what is undone on the way.

    on_fault: is told of rows that cannot be read; None: the first of them ends the reading.
    """

    path: Path
    name: str
    packing: str | None
    is_utf16: bool
    beginning: bytes
    on_fault: OnFault | None = None

    def open(self) -> BinaryIO:
        """Its bytes from the start, unpacked and in UTF-8 (if text). Raises: DataError, on the way, for damage."""
        return _opened(self.path, self.name, self.packing, self.is_utf16)

    def tell(self, fault: DataError) -> None:
        """Tell of a row that cannot be read, or raise it where nothing is to be told."""
        if self.on_fault is None:
            raise fault
        self.on_fault(fault)

    def decoded(self, data: bytes, line: int = 1) -> str:
        """UTF-8 as `decoded`; where reading goes on after faults, bytes that are none stay as U+DC80 to U+DCFF."""
        if self.on_fault is None:
            return decoded(data, self.name, line)
        text = data.decode("utf-8", "surrogateescape")
        return text.removeprefix("\ufeff") if line == 1 else text

    def lines(self, splits_at_cr: bool = False) -> Iterator[tuple[int, str]]:
        """Each line with its number, its ending kept, without a byte order mark. A line ends at a line feed.

        splits_at_cr: also at a carriage return alone.
        """
        number = 0
        with self.open() as stream:
            for data in stream:
                text = self.decoded(data, number + 1)
                if splits_at_cr and "\r" in text.rstrip("\r\n"):
                    for piece in io.StringIO(text, newline=""):
                        number += 1
                        yield number, piece
                else:
                    number += 1
                    yield number, text


def content_of(path: Path, name: str, on_fault: OnFault | None = None) -> Content:
    """The content of a file, after a look at its first bytes."""
    with path.open("rb") as file:
        first = file.read(16)
    packing = next((packing for mark, packing in _MARKS if re.match(mark, first)), None)
    beginning = _beginning(path, name, packing, False)
    is_utf16 = beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if is_utf16:
        beginning = _beginning(path, name, packing, True)
    return Content(path, name, packing, is_utf16, beginning, on_fault)


def decoded(data: bytes, name: str, line: int = 1) -> str:
    """UTF-8 as text, without the file's byte order mark; `line` is the number of the first line in it."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start]
        column = error.start - (before.rfind(b"\n") + 1) + 1
        raise DataError(
            f"the text is not UTF-8: byte 0x{data[error.start]:02X}, the {column}. of its line, is not valid there.",
            "Save the file with the encoding UTF-8.",
            file=name,
            line=line + before.count(b"\n"),
        ) from error
    return text.removeprefix("\ufeff") if line == 1 else text


# ── bytes on their way ──────────────────────────────────────────────────────────────────────────────────────────────


def _opened(path: Path, name: str, packing: str | None, is_utf16: bool) -> BinaryIO:
    if packing is None and not is_utf16:
        return path.open("rb")
    chunks = _plain(path) if packing is None else _unpacked(path, name, packing)
    return io.BufferedReader(_Chunks(_as_utf8(chunks, name) if is_utf16 else chunks), 4 * _CHUNK)


def _beginning(path: Path, name: str, packing: str | None, is_utf16: bool) -> bytes:
    """The first bytes; of a damaged file those before the damage, if there are any."""
    data = b""
    with _opened(path, name, packing, is_utf16) as stream:
        try:
            while len(data) < _BEGINNING and (more := stream.read(4096)):
                data += more
        except DataError:
            if not data:
                raise
    return data


class _Chunks(io.RawIOBase):
    """Pieces of bytes, as a stream."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        num_bytes = min(len(buffer), len(self._rest))
        buffer[:num_bytes] = self._rest[:num_bytes]
        self._rest = self._rest[num_bytes:]
        return num_bytes


def _plain(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _unpacked(path: Path, name: str, packing: str) -> Iterator[bytes]:
    num_lines = 0
    with path.open("rb") as packed:
        try:
            with _UNPACKERS[packing](packed) as unpacked:
                # read1: what was unpacked before a fault comes out before the fault does
                read = unpacked.read if packing == "zstd" else unpacked.read1
                while chunk := read(_CHUNK):
                    num_lines += chunk.count(b"\n")
                    yield chunk
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            reached = (
                f"whole lines come out of it up to line {num_lines}" if num_lines else "no whole line comes out of it"
            )
            raise DataError(
                f"this file is packed with {packing}, and is damaged or cut short ({str(error).rstrip('.')}): {reached}.",
                "Fetch or pack it anew; or unpack it as far as it goes and give what came out.",
                file=name,
                line=num_lines + 1,
            ) from error


def _zstd(packed: BinaryIO) -> AbstractContextManager[Any]:
    import pyarrow

    stream: AbstractContextManager[Any] = pyarrow.CompressedInputStream(packed, "zstd")
    return stream


_UNPACKERS: dict[str, Callable[[BinaryIO], AbstractContextManager[Any]]] = {
    "gzip": lambda packed: gzip.GzipFile(fileobj=packed),
    "bzip2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
    "zstd": _zstd,
}


def _as_utf8(chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
    """UTF-16, whose first mark says the order of its bytes, as UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-16")()
    num_lines = 0
    try:
        for chunk in chunks:
            text = decoder.decode(chunk)
            num_lines += text.count("\n")
            yield text.encode()
        yield decoder.decode(b"", final=True).encode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"the text begins as UTF-16 does, but is not sound: {error.reason}.",
            "Save the file with the encoding UTF-8.",
            file=name,
            line=num_lines + 1,
        ) from error
