"""Columns that changed places: the prompt stands in the answer's column, the label in the text's.

Two columns can be told apart if a naive Bayes over a few traits of a text (its first and last words, how long it is, what it
ends with) does so in the first rows. A row that it would rather read the other way round has them swapped.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from luthier.data.checks.findings import Finding, Notes, Severity, excerpt
from luthier.data.checks.view import Layout, RowView

KINDS: Mapping[str, Severity] = {"swapped-columns": "error"}

_SURE = 0.99
_MARGIN = 6.0
_FEWEST = 40
_MOST_COLUMNS = 6
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Pair:
    """Two columns, and for each trait by how much it speaks for the first (log-odds)."""

    first: str
    second: str
    odds: Mapping[str, float]
    unseen: float

    def margin(self, one: str, other: str) -> float:
        """How much the texts speak for standing as they do: positive, or negative if the other way round is likelier."""
        return self._sum(one) - self._sum(other)

    def _sum(self, text: str) -> float:
        return sum(self.odds.get(trait, self.unseen) for trait in traits(text))


def traits(text: str) -> list[str]:
    """What a text is known by."""
    words = [word.lower() for word in _WORD.findall(text[:120])]
    found = [f"long {len(text).bit_length()}", f"lines {min(3, text.count(chr(10)))}", f"end {text.rstrip()[-1:]}"]
    found += ["first " + word for word in words[:2]]
    found += ["has " + word for word in set(words[:12])]
    tail = _WORD.findall(text[-40:])
    return [*found, "last " + tail[-1].lower() if tail else "last"]


def learn(views: Sequence[RowView], layout: Layout) -> tuple[Pair, ...]:
    """The pairs of text columns that can be told apart."""
    columns = [column for column, part in layout.parts.items() if part not in ("id", "other")]
    columns = [column for column in columns if _is_text(views, column, layout)][:_MOST_COLUMNS]
    pairs = []
    for index, first in enumerate(columns):
        for second in columns[index + 1 :]:
            both = [texts for view in views if (texts := _both(view, first, second)) is not None]
            if len(both) >= _FEWEST and (pair := _told_apart(first, second, both)) is not None:
                pairs.append(pair)
    return tuple(pairs)


def _is_text(views: Sequence[RowView], column: str, layout: Layout) -> bool:
    held = [view.values.get(column) for view in views[:200]]
    texts = sorted(len(value) for value in held if isinstance(value, str))
    return len(texts) > 0.9 * len(held) and (layout.parts[column] in ("label", "answer") or texts[len(texts) // 2] > 12)


def _both(view: RowView, first: str, second: str) -> tuple[str, str] | None:
    one, other = view.values.get(first), view.values.get(second)
    if isinstance(one, str) and isinstance(other, str) and one.strip() and other.strip():
        return one, other
    return None


def _told_apart(first: str, second: str, both: Sequence[tuple[str, str]]) -> Pair | None:
    ones = Counter(trait for one, _ in both for trait in traits(one))
    others = Counter(trait for _, other in both for trait in traits(other))
    odds = {
        trait: math.log((ones[trait] + 0.5) / (others[trait] + 0.5))
        for trait in ones.keys() | others.keys()
        if ones[trait] + others[trait] > 1
    }
    pair = Pair(first, second, odds, 0.0)
    right = sum(pair.margin(one, other) > 0 for one, other in both)
    return pair if right >= _SURE * len(both) else None


def look(view: RowView, pairs: tuple[Pair, ...], notes: Notes) -> None:
    """Note a row in which two columns changed places."""
    for pair in pairs:
        both = _both(view, pair.first, pair.second)
        if both is None:
            continue
        peer = f"{pair.first}, {pair.second}"
        notes.looked("swapped-columns", peer)
        if pair.margin(*both) > -_MARGIN:
            continue
        for place, other, text in ((pair.first, pair.second, both[0]), (pair.second, pair.first, both[1])):
            found = f"{excerpt(text, 0, 40)!r} looks like {other}, not like {place}."
            mend = f"Swap {pair.first} and {pair.second} of this row."
            origin = view.origin
            finding = Finding("swapped-columns", "error", origin.file, origin.line, place, found, mend)
            notes.suspect(peer, finding, 0.01)
