"""Small data files for tests, and what comes out of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.data.reading import Row, read_rows


def silent(_: str) -> None:
    """Says nothing."""


def written(folder: Path, name: str, content: str | bytes) -> str:
    """The path of a new file."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def jsonl(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as the text of a JSONL file."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def values(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What stands in the rows."""
    return [row.values for row in rows]


def lines(rows: Sequence[Row]) -> list[int]:
    """The lines that the rows came from."""
    return [row.origin.line for row in rows]


def read(source: str) -> tuple[list[dict[str, Any]], str]:
    """What stands in the rows of a file, and all that was said of it."""
    said: list[str] = []
    rows = values(read_rows(source, said.append))
    return rows, "\n".join(said)
