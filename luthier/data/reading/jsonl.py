"""JSONL: one JSON object a line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from luthier.data.reading.content import Content
from luthier.data.reading.rows import Announce, Row, kind_of
from luthier.errors import DataError
from luthier.types import Origin

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_jsonl(content: Content, announce: Announce) -> Iterator[Row]:
    """A row for each line that is not blank."""
    with content.open() as lines:  # only \n ends a line here; text may hold other line separators
        for number, data in enumerate(lines, start=1):
            text = content.decoded(data, number)
            if text.isspace():
                continue
            try:
                row = _row(text.removeprefix("\ufeff"), content.name, number)
                if content.on_fault is None and may_hold_surrogates(text):
                    row = whole(row)
            except DataError as error:
                content.tell(error)
            else:
                yield row


def is_jsonl(beginning: bytes) -> bool:
    """Whether a file begins with a line that is a JSON object, and more after it."""
    first, _, rest = beginning.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")
    if not rest.strip():
        return False
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _row(text: str, name: str, number: int) -> Row:
    mend = 'Each line must be one whole JSON object, such as {"prompt": "…", "completion": "…"}.'
    if number == 1 and text.lstrip().startswith("["):
        mend += " If the file is one JSON array, name it .json."
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        found = f"this line is not JSON: {error.msg}, at column {error.colno}."
        raise DataError(found, mend, file=name, line=number) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of open brackets
        raise DataError(f"this line cannot be read as JSON: {error}.", mend, file=name, line=number) from error
    if not isinstance(value, dict):
        found = f"this line is JSON but not an object: it is {kind_of(value)}."
        raise DataError(found, mend, file=name, line=number)
    return Row(value, Origin(name, number))


def may_hold_surrogates(text: str) -> bool:
    """Whether JSON spells halves of characters, which may or may not belong together."""
    return _SURROGATE.search(text) is not None


def whole(row: Row) -> Row:
    """The row, unless it holds half of a character: JSON can spell a lone surrogate, no text encoding can."""
    try:
        json.dumps(row.values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        code = f"\\u{ord(error.object[error.start]):04x}"
        raise DataError(
            f"it holds {code}, which is half of a character (a surrogate without its other half).",
            "Remove it, or write the whole character.",
            file=row.origin.file,
            line=row.origin.line,
        ) from error
    return row
