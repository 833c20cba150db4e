"""Numbers outside the range of all others: a score of 47 where others lie between 1 and 5, a rank that two siblings share."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from luthier.data.checks.findings import Finding, Notes, Severity
from luthier.data.checks.structure import FEWEST
from luthier.data.checks.view import Layout, RowView

KINDS: Mapping[str, Severity] = {"out-of-range": "error", "wrong-rank": "error"}

Ranges = Mapping[str, tuple[float, float]]
"""By peer: the least and the greatest number that is not out of range."""

_BEYOND = 0.003
"""Share of the values that may lie beyond the end of a scale."""

_WHOLE_NUMBER_NAMES = ("start", "end", "offset", "line", "count", "length", "num_", "year", "tokens")


def learn(views: Sequence[RowView], layout: Layout) -> Ranges:
    """The ranges of the numbers of the first rows; those of numbers that are no scores are left out."""
    numbers: dict[str, list[float]] = defaultdict(list)
    for view in views:
        for _, peer, number in _numbers(view, layout):
            numbers[peer].append(number)
    return {peer: found for peer, held in numbers.items() if (found := _range(held)) is not None}


def _numbers(view: RowView, layout: Layout) -> Iterator[tuple[str, str, float]]:
    """Each number of a row that may be a score: its field, its peer, and itself."""
    for leaf in view.leaves:
        value: Any = leaf.value
        if isinstance(value, int | float) and not isinstance(value, bool) and _may_be_score(leaf.peer, layout):
            yield leaf.field, leaf.peer, float(value)
    for cell in view.cells:
        text = cell.text.strip()
        if len(text) <= 24 and text[-1:].isdigit() and cell.field == cell.peer and _may_be_score(cell.peer, layout):
            try:
                yield cell.field, cell.peer, float(text)
            except ValueError:
                continue


def _may_be_score(peer: str, layout: Layout) -> bool:
    if layout.parts.get(peer) in ("id", "label"):
        return False
    name = peer.rpartition(".")[2].lower()
    if "." in peer and not any(word in name for word in ("score", "rating", "weight", "margin")):
        return False
    return "labels." not in peer and not any(word in name for word in _WHOLE_NUMBER_NAMES)


def _range(numbers: list[float]) -> tuple[float, float] | None:
    """The range in which all but a few lie, with room on both sides; None where there is no such thing."""
    ordered = sorted(number for number in numbers if math.isfinite(number))
    if len(ordered) < FEWEST:
        return None
    cut = max(1, len(ordered) // 100) if len(ordered) >= 100 else 0
    low, high = ordered[cut], ordered[-1 - cut]
    width = high - low
    distinct = len(set(ordered))
    if width > 1000 or (distinct > 50 and all(number.is_integer() for number in ordered)):
        return None  # identity numbers and counts, not scores
    room = 0.5 * width if width else 0.0
    if distinct <= 12 and all(number.is_integer() for number in ordered[cut : len(ordered) - cut]):
        room = 0.0
    bottom, top = _bound(ordered), _bound(ordered, from_above=True)
    if room and (bottom is not None or top is not None):
        return low - room if bottom is None else bottom, high + room if top is None else top
    least = max(low - room, 0.0) if low >= 0 else low - room
    greatest = min(high + room, 1.0) if least >= 0 and 0.5 < high <= 1 and low < 0.5 and distinct > 2 else high + room
    return least, greatest


def _bound(ordered: Sequence[float], *, from_above: bool = False) -> float | None:
    """Where a scale ends: the outermost whole number that several values are, if hardly any lies beyond it; None if nowhere."""
    beyond = 0
    for number, many in sorted(Counter(ordered).items(), reverse=from_above):
        if number.is_integer() and many >= max(3, len(ordered) // 400):
            return number
        beyond += many
        if beyond > max(1, _BEYOND * len(ordered)):
            return None
    return None


def look(view: RowView, ranges: Ranges, layout: Layout, notes: Notes) -> None:
    """Note numbers out of range, and ranks of sibling answers that are none."""
    for place, peer, number in _numbers(view, layout):
        if peer not in ranges:
            continue
        notes.looked("out-of-range", peer)
        least, greatest = ranges[peer]
        if not least <= number <= greatest:
            found = f"{number:g} is out of the range of the others, which lie between {least:g} and {greatest:g}."
            mend = "Write a number of that range, or leave this row out."
            notes.suspect(peer, _finding(view, "out-of-range", place, found, mend), 0.01)
    for leaf in view.leaves:
        if isinstance(leaf.value, list) and leaf.field.endswith("replies"):
            _ranks(view, leaf.field, leaf.value, notes)


def _ranks(view: RowView, place: str, siblings: list[Any], notes: Notes) -> None:
    """Ranks of sibling answers count from 0, each once."""
    ranks = [(index, each.get("rank")) for index, each in enumerate(siblings) if isinstance(each, dict)]
    ranked = [(index, rank) for index, rank in ranks if isinstance(rank, int)]
    if not ranked:
        return
    notes.looked("wrong-rank", "")
    held = [rank for _, rank in ranked]
    for index, rank in ranked:
        if rank < 0 or rank >= len(siblings) or held.count(rank) > 1:
            found = f"the rank is {rank} among {len(siblings)} answers, whose ranks are {held}."
            mend = "Number the answers from 0, each once."
            notes.suspect("", _finding(view, "wrong-rank", f"{place}[{index}].rank", found, mend), 0.05)


def _finding(view: RowView, kind: str, place: str, found: str, mend: str) -> Finding:
    return Finding(kind, KINDS[kind], view.origin.file, view.origin.line, place, found, mend)
