"""Files → rows for the data check: as training reads them, but nothing stops at the first fault.

A text file gives its paragraphs, and an article of SQuAD its questions, each a row of its own with the paragraph that it is
about. Bytes that are not UTF-8 stay in the text as the code points U+DC80 to U+DCFF, where the check of encodings finds them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from luthier.data.checks.findings import Finding, Notes
from luthier.data.checks.form import NATURALLY, ReadAs
from luthier.data.checks.view import TEXT_ENDINGS
from luthier.data.formats.message_trees import iter_whole_rows
from luthier.data.reading import Row
from luthier.errors import DataError
from luthier.types import Origin

Announce = Callable[[str], None]

BROKEN = "broken-line"


@dataclass(frozen=True)
class Place:
    """Where a question stands: the line of its row in a file of lines (of a JSON document None, as there a finding's line is
    the question's running number), the ways to its article, its paragraph and itself, and the paragraph's first question.
    """

    line: int | None
    article: str
    paragraph: str
    own: str
    first: int


@dataclass
class Questions:
    """SQuAD's articles taken apart into their questions, each a row with the paragraph that it is about.

    In a JSON document a question is known by its running number, as any row is, and by the path that leads to it, such as
    data[3].paragraphs[0].qas[2]. In a file of lines it is known by its line and the path from there; while the check lasts,
    its number then is negative, so that it is no other row's.

    trees: where the messages stand of rows that were put together from them; nothing else of these is held.
    """

    places: dict[tuple[str, int], Place] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    trees: dict[tuple[str, int], Row] = field(default_factory=dict)

    def among(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows, and in the place of an article its questions."""
        for row in rows:
            if row.parts:
                self.trees[row.origin.file, row.origin.line] = Row({}, row.origin, parts=row.parts)
                yield row
            elif "paragraphs" in row.values and is_article(row):
                yield from self.of_article(row)
            elif self.counts and row.path:
                self.counts[row.origin.file] += 1
                yield Row(row.values, Origin(row.origin.file, self.counts[row.origin.file]), row.path)
            else:
                yield row

    def of_article(self, row: Row) -> Iterator[Row]:
        """The questions of an article."""
        file = row.origin.file
        if row.path and not self.counts[file]:
            self.counts[file] = row.origin.line - 1
        above = {key: value for key, value in row.values.items() if key != "paragraphs"}
        for number, paragraph in enumerate(row.values["paragraphs"]):
            if not _is_paragraph(paragraph):
                continue
            given = {key: value for key, value in paragraph.items() if key != "qas"}
            way = f"{row.path}.paragraphs[{number}]" if row.path else f"paragraphs[{number}]"
            first = self.counts[file] + 1
            for index, pair in enumerate(paragraph["qas"]):
                if isinstance(pair, dict):
                    self.counts[file] += 1
                    line = self.counts[file] if row.path else -self.counts[file]
                    own = f"{way}.qas[{index}]"
                    known = None if row.path else row.origin.line
                    self.places[file, line] = Place(known, row.path, way, own, first if row.path else -first)
                    yield Row({**above, **given, **pair}, Origin(file, line), own)

    def in_article(self, finding: Finding) -> Finding:
        """A finding at a question with the way that leads there; what is wrong with a paragraph, at its first question.

        One at a message of a tree that was put together, at the message's own line.
        """
        tree = None if finding.line is None else self.trees.get((finding.file, finding.line))
        if tree is not None and finding.field is not None:
            origin, within = tree.place_of(finding.field)
            return replace(finding, file=origin.file, line=origin.line, field=within)
        place = None if finding.line is None else self.places.get((finding.file, finding.line))
        if place is None:
            return finding
        name, line = finding.field, finding.line
        if name is None:
            way = place.own
        elif name == "title":
            way = f"{place.article}.title" if place.article else "title"
        elif name == "context":
            way, line = f"{place.paragraph}.context", place.first
        else:
            way = f"{place.own}.{name}"
        found = _HELD_LINE.sub(lambda match: self._said(finding.file, int(match[1])), finding.found)
        return replace(finding, line=line if place.line is None else place.line, field=way, found=found)

    def _said(self, file: str, line: int) -> str:
        place = self.places[file, line]
        return f"line {place.line}, {place.own}"


_HELD_LINE = re.compile(r"line (-\d+)")


def is_article(row: Row) -> bool:
    """Whether a row holds paragraphs with questions."""
    paragraphs = row.values.get("paragraphs")
    return isinstance(paragraphs, list) and any(_is_paragraph(each) for each in paragraphs)


def _is_paragraph(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("qas"), list)


def stream_rows(
    source: str | tuple[str, ...], announce: Announce, notes: Notes, read_as: ReadAs = NATURALLY
) -> Iterator[Row]:
    """The rows of a file, of several, or of a hub data set; what is no row is noted as a finding.

    read_as: how a recipe reads them, which says whether single messages are put together.
    Raises: NotFound, NetworkError; DataError for a file that cannot be read at all, such as a pickle.
    """

    def told(fault: DataError) -> None:
        notes.tell(BROKEN, "error", Origin(fault.file or "", fault.line or 1), fault.field, fault.found, fault.mend)

    for row in iter_whole_rows(source, announce, on_fault=told, format=read_as.format, wishes=read_as.wishes):
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
