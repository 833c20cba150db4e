"""Answers outside the options that the row itself lists: "(K)" where the question ends with (A) to (E).

Options are lines behind a heading such as "Options:" or "Choices:", each with a letter, a number or a dash before it. An
answer is one of them if it is an option's letter, its text, or the beginning of it up to a colon ("Sentence A: …").
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from luthier.data.checks.answers import is_meant_bad
from luthier.data.checks.findings import Finding, Notes, Severity
from luthier.data.checks.view import Cell, Layout, RowView

KINDS: Mapping[str, Severity] = {"not-an-option": "error"}

_HEADING = re.compile(
    r"(?im)^[ \t]*(?:answer )?(?:options|choices|possible answers|answer choices)[ \t]*(?:are)?[ \t]*:[ \t]*$"
)
_OPTION = re.compile(r"^[ \t]*(?:[-*•][ \t]*)?(?:\(?([A-Za-z]|\d{1,2})[).:][ \t]+)?(.*\S)[ \t]*$")
_MARKED = re.compile(r"^[ \t]*(?:[-*•]|\(?(?:[A-Za-z]|\d{1,2})[).:])[ \t]+\S")
_SIGNS = re.compile(r"^[\s(\[\"']+|[\s)\].:\"']+$")

RARE = 0.05


def look(view: RowView, layout: Layout, notes: Notes) -> None:
    """Note an answer that is none of the options that its prompt lists."""
    listed: tuple[str, ...] = ()
    for cell in view.cells:
        if cell.part in ("prompt", "text") and ":" in cell.text and _HEADING.search(cell.text):
            listed = options_in(cell.text)
    if not listed:
        return
    for cell in _short_answers(view, listed):
        notes.looked("not-an-option", cell.peer)
        if is_meant_bad(view, cell):
            continue
        if plain(cell.text) and plain(cell.text) not in listed:
            found = f"the answer {cell.text.strip()[:40]!r} is none of the options: {', '.join(listed[:8])[:120]}."
            origin = view.origin
            finding = Finding(
                "not-an-option", "error", origin.file, origin.line, cell.field, found, "Write one of the options."
            )
            notes.suspect(cell.peer, finding, RARE)


def _short_answers(view: RowView, listed: Sequence[str]) -> list[Cell]:
    """The answers and labels that are no longer than the options are."""
    longest = max(30, *map(len, listed))
    return [cell for cell in view.texts("answer", "label") if len(cell.text) <= longest + 4]


def options_in(text: str) -> tuple[str, ...]:
    """What may be answered: of each option its letter, its text, and its text up to a colon; nothing without a heading."""
    headings = list(_HEADING.finditer(text))
    found: list[str] = []
    # the last heading counts: earlier ones are of examples
    for line in text[headings[-1].end() :].split("\n") if headings else ():
        if not line.strip():
            continue
        match = _OPTION.match(line) if _MARKED.match(line) else None
        if match is None:
            break
        letter, said = match[1], match[2]
        found += [plain(each) for each in (letter, said, said.partition(":")[0]) if each]
    return tuple(dict.fromkeys(filter(None, found)))


def plain(text: str) -> str:
    """An option or answer without brackets, quotes, a full stop and capitals."""
    return _SIGNS.sub("", text).casefold()
