"""Plain text: the whole file as one row."""

from __future__ import annotations

from collections.abc import Iterator

from luthier.data.reading.content import Content
from luthier.data.reading.rows import Announce, Row
from luthier.types import Origin


def read_text(content: Content, announce: Announce) -> Iterator[Row]:
    """One row with the column `text`; none if the file is blank."""
    with content.open() as stream:
        text = content.decoded(stream.read())
    if text.strip():
        yield Row({"text": text}, Origin(content.name, 1))
