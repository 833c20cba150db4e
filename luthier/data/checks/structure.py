"""The shape of rows: fields that are missing, null or empty, values of another type, JSON in a string that does not parse.

What a field usually is, is learned from the first rows; what only few rows do otherwise is a fault.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.data.checks.findings import Finding, Notes, Severity, excerpt
from luthier.data.checks.view import Cell, RowView, described

KINDS: Mapping[str, Severity] = {
    "missing-field": "error",
    "null-value": "error",
    "empty-text": "error",
    "wrong-type": "error",
    "broken-json": "error",
    "stray-space": "warning",
    "wrong-length": "error",
}

FEWEST = 20
"""With fewer values there is no saying what is usual."""

USUAL = 0.95
_NESTED = 0.99
_RARE = 0.03
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


@dataclass(frozen=True)
class Shapes:
    """What is usual: keys of objects, kinds of values, and forms of texts, each by peer; lists of one length."""

    keys: Mapping[str, frozenset[str]]
    kinds: Mapping[str, str]
    forms: Mapping[str, str]
    filled: frozenset[str]
    trimmed: frozenset[str]
    pairs: tuple[tuple[str, str], ...]


def learn(views: Sequence[RowView]) -> Shapes:
    """What is usual in the first rows."""
    keys: dict[str, Counter[str]] = defaultdict(Counter)
    objects: Counter[str] = Counter()
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    forms: dict[str, Counter[str]] = defaultdict(Counter)
    for view in views:
        for peer, value in _objects(view):
            objects[peer] += 1
            keys[peer].update(value.keys())
        for peer, kind in _kinds(view):
            kinds[peer][kind] += 1
        for cell in view.cells:
            forms[cell.peer].update(_forms(cell.text))
            forms[cell.peer]["all"] += 1
    return Shapes(
        {
            peer: frozenset(
                key for key, count in found.items() if count >= (_NESTED if peer else USUAL) * objects[peer]
            )
            for peer, found in keys.items()
            if objects[peer] >= FEWEST
        },
        {peer: usual for peer, found in kinds.items() if (usual := _usual(found))},
        {peer: form for peer, found in forms.items() if (form := _usual_form(found))},
        _mostly(forms, "filled", 0.97),
        _mostly(forms, "trimmed", 0.99),
        _paired(views),
    )


def _objects(view: RowView) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "", view.values
    for leaf in view.leaves:
        if isinstance(leaf.value, dict):
            yield leaf.peer, leaf.value


def _kinds(view: RowView) -> Iterator[tuple[str, str]]:
    for cell in view.cells:
        yield _bare(cell.peer), "text"
    for leaf in view.leaves:
        yield leaf.peer, described(leaf.value)


def _bare(peer: str) -> str:
    """The peer without who speaks."""
    return peer.partition(" (")[0]


def _forms(text: str) -> Iterator[str]:
    stripped = text.strip()
    if stripped:
        yield "filled"
        if _NUMBER.fullmatch(stripped):
            yield "a number"
        if stripped[0] in "{[" and _parses(stripped):
            yield "JSON"
    if stripped == text:
        yield "trimmed"


def _parses(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _usual(found: Counter[str]) -> str | None:
    kind, count = found.most_common(1)[0]
    return kind if found.total() >= FEWEST and count >= USUAL * found.total() else None


def _usual_form(found: Counter[str]) -> str | None:
    if found["all"] < FEWEST:
        return None
    return next((form for form in ("a number", "JSON") if found[form] >= USUAL * found["filled"] > 0), None)


def _mostly(forms: Mapping[str, Counter[str]], form: str, share: float) -> frozenset[str]:
    return frozenset(
        peer for peer, found in forms.items() if found["all"] >= FEWEST and found[form] >= share * found["all"]
    )


def _paired(views: Sequence[RowView]) -> tuple[tuple[str, str], ...]:
    """Columns that hold lists which are always of one length."""
    columns = [column for column in (views[0].values if views else ()) if isinstance(views[0].values[column], list)]
    found = []
    for index, first in enumerate(columns):
        for second in columns[index + 1 :]:
            same = [_length(view, first) == _length(view, second) for view in views]
            lengths = {_length(view, first) for view in views}
            if len(same) >= FEWEST and sum(same) >= USUAL * len(same) and max(lengths) > 2:
                found.append((first, second))
    return tuple(found)


def _length(view: RowView, column: str) -> int:
    value = view.values.get(column)
    return len(value) if isinstance(value, list) else -1


# ── a row against what is usual ─────────────────────────────────────────────────────────────────────────────────────


def look(view: RowView, shapes: Shapes, notes: Notes) -> None:
    """Note where a row is not of the usual shape."""
    for peer, value in _objects(view):
        _keys(view, peer, value, shapes, notes)
    for leaf in view.leaves:
        _kind(view, leaf.field, leaf.peer, leaf.value, shapes, notes)
    for cell in view.cells:
        _form(view, cell, shapes, notes)
    for first, second in shapes.pairs:
        peer = f"{first}, {second}"
        notes.looked("wrong-length", peer)
        if _length(view, first) != _length(view, second) and -1 not in (_length(view, first), _length(view, second)):
            found = f"{first} has {_length(view, first)} elements, {second} has {_length(view, second)}."
            mend = f"Give each element of {first} its own."
            _suspect(view, notes, "wrong-length", peer, second, found, mend, 0.02)


def _keys(view: RowView, peer: str, value: dict[str, Any], shapes: Shapes, notes: Notes) -> None:
    expected = shapes.keys.get(peer)
    if not expected:
        return
    notes.looked("missing-field", peer)
    place = _place_of(view, value)
    for key in sorted(expected - value.keys()):
        near = difflib.get_close_matches(key, [str(other) for other in value if other not in expected], n=1)
        there = ", ".join(repr(other) for other in list(value)[:8]) or "no keys"
        mend = f"Write {key!r} where {near[0]!r} is written." if near else f"Add {key!r}, or leave this row out."
        where = f"{place}.{key}" if place else key
        _suspect(view, notes, "missing-field", peer, where, f"{key!r} is missing; there is {there}.", mend)


def _place_of(view: RowView, value: dict[str, Any]) -> str:
    return "" if value is view.values else next(leaf.field for leaf in view.leaves if leaf.value is value)


def _kind(view: RowView, place: str, peer: str, value: Any, shapes: Shapes, notes: Notes) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        notes.tell("wrong-type", "error", view.origin, place, f"the number is {value}.", "Write a number.")
    usual = shapes.kinds.get(peer)
    if usual is None:
        return
    notes.looked("null-value", peer)
    notes.looked("wrong-type", peer)
    kind = described(value)
    if kind == usual:
        return
    if value is None:
        mend = "Fill it in, or leave this row out."
        _suspect(view, notes, "null-value", peer, place, f"it is null, where others hold {usual}.", mend)
    else:
        found = f"it is {kind}, where others hold {usual}."
        _suspect(view, notes, "wrong-type", peer, place, found, f"Write {usual}, or leave this row out.")


def _form(view: RowView, cell: Cell, shapes: Shapes, notes: Notes) -> None:
    peer, text = cell.peer, cell.text
    bare = _bare(peer)
    usual = shapes.kinds.get(bare)
    notes.looked("wrong-type", bare)
    if usual not in (None, "text"):
        found = f"it is text ({excerpt(text, 0, 30)!r}), where others hold {usual}."
        _suspect(view, notes, "wrong-type", bare, cell.field, found, f"Write {usual}, or leave this row out.")
        return
    if not text.strip():
        _empty(view, cell, shapes, notes)
        return
    form = shapes.forms.get(peer)
    if form == "a number" and not _NUMBER.fullmatch(text.strip()):
        found = f"{excerpt(text, 0, 30)!r} is no number, where others hold one."
        _suspect(view, notes, "wrong-type", bare, cell.field, found, "Write a number, or leave this row out.")
    elif form == "JSON" and not (text.strip()[0] in "{[" and _parses(text)):
        found = f"the text is not JSON, where others hold JSON: {_where_broken(text)}."
        _suspect(view, notes, "broken-json", peer, cell.field, found, "Write whole JSON, or leave this row out.")
    if peer in shapes.trimmed and text != text.strip():
        found = f"white space stands before or after the text {excerpt(text.strip(), 0, 30)!r}."
        _suspect(view, notes, "stray-space", peer, cell.field, found, "Take it off.", 0.004)


def _where_broken(text: str) -> str:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return f"{error.msg}, at column {error.colno} of {excerpt(text, max(0, error.pos - 10), error.pos + 10)}"
    except (ValueError, RecursionError) as error:
        return str(error)
    return f"{excerpt(text, 0, 30)} is neither an object nor a list"


def _empty(view: RowView, cell: Cell, shapes: Shapes, notes: Notes) -> None:
    what = "is empty" if not cell.text else "holds nothing but white space"
    mend = "Fill it in, or leave this row out."
    if cell.text or cell.peer in shapes.filled:
        _suspect(view, notes, "empty-text", cell.peer, cell.field, f"the text {what}.", mend, 0.02)


def _suspect(
    view: RowView, notes: Notes, kind: str, peer: str, place: str, found: str, mend: str, limit: float = _RARE
) -> None:
    finding = Finding(kind, KINDS[kind], view.origin.file, view.origin.line, place, found, mend)
    notes.suspect(peer, finding, limit)
