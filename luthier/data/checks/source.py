"""Files → rows for the data check: as training reads them, but nothing stops at the first fault.

A text file gives its paragraphs, and an article of SQuAD its questions, each a row of its own with the paragraph that it is
about. Bytes that are not UTF-8 stay in the text as the code points U+DC80 to U+DCFF, where the check of encodings finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from luthier.data.checks.findings import Finding, Notes
from luthier.data.checks.view import TEXT_ENDINGS
from luthier.data.reading import Row, iter_rows
from luthier.errors import DataError
from luthier.types import Origin

Announce = Callable[[str], None]

BROKEN = "broken-line"


@dataclass
class Questions:
    """Where in its article each question stands: while the check lasts, a question's line is its number."""

    places: dict[tuple[str, int], tuple[int, str, str]] = field(default_factory=dict)

    def of_row(self, row: Row) -> Iterator[Row]:
        """The questions of an article; any other row as it is."""
        paragraphs = row.values.get("paragraphs")
        if not isinstance(paragraphs, list) or not any(_is_paragraph(each) for each in paragraphs):
            yield row
            return
        about = {key: value for key, value in row.values.items() if key != "paragraphs"}
        for number, paragraph in enumerate(paragraphs):
            if not _is_paragraph(paragraph):
                continue
            given = {key: value for key, value in paragraph.items() if key != "qas"}
            for index, pair in enumerate(paragraph["qas"]):
                if isinstance(pair, dict):
                    origin = Origin(row.origin.file, len(self.places) + 1)
                    above = f"paragraphs[{number}]"
                    self.places[origin.file, origin.line] = (row.origin.line, above, f"{above}.qas[{index}]")
                    yield Row({**about, **given, **pair}, origin)

    def in_article(self, finding: Finding) -> Finding:
        """A finding at a question as one at its article, with the path that leads to the question."""
        place = None if finding.line is None else self.places.get((finding.file, finding.line))
        if place is None:
            return finding
        line, above, own = place
        name = finding.field
        path = own if name is None else name if name == "title" else f"{above if name == 'context' else own}.{name}"
        return replace(finding, line=line, field=path)


def _is_paragraph(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("qas"), list)


def stream_rows(source: str | tuple[str, ...], announce: Announce, notes: Notes) -> Iterator[Row]:
    """The rows of a file, of several, or of a hub data set; what is no row is noted as a finding.

    Raises: NotFound, NetworkError; DataError for a file that cannot be read at all, such as a pickle.
    """

    def told(fault: DataError) -> None:
        notes.tell(BROKEN, "error", Origin(fault.file or "", fault.line or 1), fault.field, fault.found, fault.mend)

    for row in iter_rows(source, announce, on_fault=told):
        yield from _paragraphs(row) if _is_prose(row) else (row,)


def _is_prose(row: Row) -> bool:
    """Whether this is a whole text file."""
    return [*row.values] == ["text"] and row.origin.file.lower().endswith(TEXT_ENDINGS)


def _paragraphs(row: Row) -> Iterator[Row]:
    """What stands between blank lines, with the line on which it begins."""
    held: list[str] = []
    first = 1
    for number, line in enumerate(row.values["text"].split("\n"), start=1):
        if line.strip():
            first = first if held else number
            held.append(line)
        elif held:
            yield Row({"text": "\n".join(held)}, Origin(row.origin.file, first))
            held = []
    if held:
        yield Row({"text": "\n".join(held)}, Origin(row.origin.file, first))
