"""Which kind of file it is: by its ending, or else by its content; and which kinds are refused, unread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from luthier.data.reading.conll import has_span_tags, read_conll
from luthier.data.reading.content import PACKINGS, Content, content_of
from luthier.data.reading.delimited import read_csv, read_tabbed
from luthier.data.reading.json_document import read_json
from luthier.data.reading.jsonl import read_jsonl
from luthier.data.reading.parquet import read_parquet
from luthier.data.reading.plain import read_text
from luthier.data.reading.rows import Announce, OnFault, Row
from luthier.errors import DataError

Reader = Callable[[Content, Announce], Iterator[Row]]

READABLE = (
    "JSONL (.jsonl), JSON (.json), CSV (.csv, .tsv), Parquet (.parquet), CoNLL (.conll) or plain text (.txt), "
    "text also packed (.gz, .zst, .bz2, .xz)"
)

_READERS: dict[str, Reader] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tabbed,
    ".tab": read_tabbed,
    ".parquet": read_parquet,
    ".pq": read_parquet,
    ".conll": read_conll,
    ".conllu": read_conll,
    ".iob": read_conll,
    ".iob2": read_conll,
    ".bio": read_conll,
    ".md": read_text,
}

_TEXT_ENDINGS = (".txt", ".text")
"""Plain text, unless its content shows a table or CoNLL."""

_NO_PICKLE = "Opening a pickle can run code, so it is never read; save the rows as JSONL, CSV or Parquet."
_UNPACK = "Unpack it, and give the file or the folder that was inside."
_SAVE_ROWS = "Save the rows as JSONL, CSV or Parquet and give that file."
_SAVE_TEXT = "Save its text as .txt, or as rows of JSONL, and give that file."

_REFUSED_ENDINGS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".npy", ".npz"),
        ("this is a pickle, or a file that may hold one.", _NO_PICKLE),
    ),
    **dict.fromkeys(
        (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".7z", ".rar"),
        ("this is an archive, which may hold many files.", _UNPACK),
    ),
    **dict.fromkeys(
        (".xlsx", ".xls", ".xlsm", ".ods"), ("this is a spreadsheet.", "Save the sheet as CSV and give that file.")
    ),
    **dict.fromkeys((".safetensors", ".gguf"), ("this file holds a model's weights, not rows.", _SAVE_ROWS)),
    **dict.fromkeys((".arrow", ".feather"), ("this is an Arrow file.", "Save it as Parquet and give that file.")),
    **dict.fromkeys((".pdf", ".doc", ".docx", ".odt", ".rtf", ".epub"), ("this is a document with a layout.", _SAVE_TEXT)),
    **dict.fromkeys((".html", ".htm", ".xml"), ("this is text with markup around it.", _SAVE_TEXT)),
    **dict.fromkeys(
        (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff"),
        ("this is an image; Luthier learns from text.", _SAVE_ROWS),
    ),
    **dict.fromkeys(
        (".wav", ".mp3", ".flac", ".ogg", ".m4a", ".mp4", ".mkv", ".avi", ".mov", ".webm"),
        ("this is sound or film; Luthier learns from text.", _SAVE_ROWS),
    ),
    **dict.fromkeys((".db", ".sqlite", ".sqlite3"), ("this is a database.", _SAVE_ROWS)),
    **dict.fromkeys((".h5", ".hdf5", ".avro", ".orc", ".tfrecord", ".rds", ".rdata", ".mat", ".sav", ".dta"), (
        "Luthier does not read this kind of file.", _SAVE_ROWS)),
}  # fmt: skip

_REFUSED_BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    *((bytes([0x80, protocol]), "this file begins as a pickle does.", _NO_PICKLE) for protocol in range(2, 6)),
    (b"\x93NUMPY", "this is a NumPy file, which may hold a pickle.", _NO_PICKLE),
    (b"PK\x03\x04", "this is a zip archive (spreadsheets and torch files are such archives too).", _SAVE_ROWS),
    (b"7z\xbc\xaf\x27\x1c", "this is an archive (7z).", _UNPACK),
    (b"Rar!\x1a\x07", "this is an archive (RAR).", _UNPACK),
    (b"\x1f\x8b", "this file is packed twice.", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "this file is packed twice.", _UNPACK),
    (b"ARROW1", "this is an Arrow file.", "Save it as Parquet and give that file."),
    (b"GGUF", "this file holds a model's weights, not rows.", _SAVE_ROWS),
    (b"%PDF-", "this is a PDF.", _SAVE_TEXT),
    (b"\xd0\xcf\x11\xe0", "this is an office document.", "Save it as CSV or text and give that file."),
    (b"SQLite format 3\0", "this is a database (SQLite).", _SAVE_ROWS),
    (b"\x89HDF\r\n", "this is an HDF5 file.", _SAVE_ROWS),
    (b"\x89PNG\r\n", "this is an image (PNG); Luthier learns from text.", _SAVE_ROWS),
    (b"\xff\xd8\xff", "this is an image (JPEG); Luthier learns from text.", _SAVE_ROWS),
)

_TEXT_OF_A_ZERO = 1000
"""Bytes of text to which one that is zero may be a fault of a row, where reading goes on after such."""

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def rows_in(path: Path, name: str, announce: Announce, on_fault: OnFault | None = None) -> Iterator[Row]:
    """The rows of one file.

    announce: is told what its name does not: that it is packed, how its text is encoded, a kind told by content.
    on_fault: is told of rows that cannot be read, and those after them are read all the same.
    Raises: DataError, for a kind that is not read before it is opened, and for content that cannot be used.
    """
    ending = _ending(path)
    if ending in _REFUSED_ENDINGS:
        raise DataError(*_REFUSED_ENDINGS[ending], file=name)
    content = content_of(path, name, on_fault)
    if not content.beginning:
        raise DataError("the file is empty.", "Give a file that holds at least one row.", file=name)
    _refuse_what_it_is(content)
    expected = PACKINGS.get(path.suffix.lower())
    if content.packing is not None and content.packing != expected:
        announce(f"{name} is packed with {content.packing}, though its name does not say so; it is read unpacked.")
    elif content.packing is None and expected is not None:
        announce(f"{name} is not packed, though its name says so; it is read as it is.")
    if content.is_utf16:
        announce(f"{name}: the text is UTF-16, and is read so.")
    yield from _reader_of(content, ending, announce)(content, announce)


def is_readable_ending(path: Path) -> bool:
    """Whether a file's name says that it holds rows or text."""
    ending = _ending(path)
    return ending in _READERS or ending in _TEXT_ENDINGS or (not ending and path.suffix.lower() in PACKINGS)


def _ending(path: Path) -> str:
    """The ending that tells the kind: that before .gz and the like."""
    name = path.stem if path.suffix.lower() in PACKINGS else path.name
    return Path(name).suffix.lower()


def _refuse_what_it_is(content: Content) -> None:
    """Raises: DataError, if the first bytes are those of a kind that is not read."""
    for mark, found, mend in _REFUSED_BEGINNINGS:
        if content.beginning.startswith(mark):
            raise DataError(found, mend, file=content.name)
    if content.beginning[257:262] == b"ustar":
        raise DataError("this is an archive (tar).", _UNPACK, file=content.name)
    if content.beginning.startswith(_LFS_POINTER):
        found = "this is not the file itself, but what git keeps in its place (a pointer of git-lfs)."
        raise DataError(found, "Fetch the file with `git lfs pull`.", file=content.name)


def _reader_of(content: Content, ending: str, announce: Announce) -> Reader:
    """The function that reads this kind of file."""
    reader = _READERS.get(ending)
    if reader is read_parquet or (reader is None and content.beginning.startswith(b"PAR1")):
        return read_parquet
    num_allowed = 0 if content.on_fault is None else len(content.beginning) // _TEXT_OF_A_ZERO
    if content.beginning.count(0) > num_allowed:
        found = "it is not text: it holds bytes that are zero, as UTF-16 without a byte order mark and binary files do."
        mend = f"Luthier reads {READABLE}; save text as UTF-8."
        raise DataError(found, mend, file=content.name)
    if reader is not None:
        return reader
    if (
        content.beginning.removeprefix(b"\xef\xbb\xbf").lstrip().startswith((b"{", b"["))
        and ending not in _TEXT_ENDINGS
    ):
        return read_json  # which also takes JSONL
    told = _told_by_content(content, announce)
    if told is not None:
        return told
    if ending in _TEXT_ENDINGS:
        return read_text
    raise DataError(
        "neither its name nor its content tells what kind of file it is.",
        f"Luthier reads {READABLE}; give the file the ending that fits its content.",
        file=content.name,
    )


def _told_by_content(content: Content, announce: Announce) -> Reader | None:
    """CoNLL, or a table with tabs; None for other text."""
    lines = content.beginning.decode(errors="replace").split("\n")
    lines = lines[:-1] if len(lines) > 2 else lines  # the last may be cut
    if has_span_tags(lines):
        announce(f"{content.name} holds a word and its tag a line, so it is read as CoNLL.")
        return read_conll
    if _is_tabbed(lines):
        announce(f"{content.name} has the same number of tabs in nearly every line, so it is read as a table.")
        return read_tabbed
    return None


def _is_tabbed(lines: list[str]) -> bool:
    """Whether two lines or more hold text, and nearly all of them the same number of tabs, not just as indentation."""
    filled = [line for line in lines if line.strip()]
    if len(filled) < 2:
        return False
    num_tabs, num_lines = Counter(line.count("\t") for line in filled).most_common(1)[0]
    is_indented = all(line.startswith("\t") for line in filled)
    return num_tabs > 0 and not is_indented and 20 * num_lines >= 19 * len(filled)
