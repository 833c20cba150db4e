"""What a command prints: data on standard out, everything else on standard error."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from luthier.errors import LuthierError, UsageError


def say(text: str) -> None:
    """Tell the person at the terminal something, on standard error."""
    print(text, file=sys.stderr, flush=True)


def emit(document: Mapping[str, Any], text: str, as_json: bool) -> None:
    """Print a command's result on standard out: as one JSON document, or as text."""
    print(json.dumps(document, ensure_ascii=False, indent=2) if as_json else text, flush=True)


def print_error(error: LuthierError, as_json: bool) -> None:
    """Print an error: what was found, and on a line of its own the mend; with `--json` the document on standard out."""
    if as_json:
        emit(error.as_json(), "", as_json=True)
        return
    is_terminal = sys.stderr.isatty()
    label = "\x1b[1;31merror:\x1b[0m" if is_terminal else "error:"
    say(f"{label} {error.where}: {error.found}" if error.where else f"{label} {error.found}")
    if error.mend:
        say(f"  {error.mend}")


@contextmanager
def reading_standard_in() -> Iterator[None]:
    """Within: bytes on standard in that are no text are a UsageError."""
    try:
        yield
    except UnicodeDecodeError as error:
        found = (
            f"Standard in is not {error.encoding.upper()} text: it holds the byte 0x{error.object[error.start]:02X}."
        )
        raise UsageError(found, "Pipe in text, in UTF-8.") from error


def quoted(path: object) -> str:
    """A path as a shell takes it, for commands that a person may copy."""
    return shlex.quote(str(path))


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines whose columns stand under each other."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
