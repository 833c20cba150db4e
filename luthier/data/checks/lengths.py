"""How long the rows are: what a limit would cut, texts that all end at the same length, and texts far longer than all others."""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from luthier.data.checks.findings import Finding, Severity
from luthier.data.checks.view import Layout, RowView
from luthier.types import Origin

KINDS: Mapping[str, Severity] = {"length-limit": "error", "far-longer": "warning"}

_SHORTEST = 60
_FEWEST = 50
_KEPT = 2_000
_Text = tuple[int, bool, Origin, str, int]
"""Its length, whether it ends as a text does, where it is, its field, and a digest."""

_FAR = 8
_MANY = 0.05
_ENDS = ".!?。！？…\"”’'»›)]}）】*`:"


@dataclass
class Lengths:
    """Characters of rows and of texts, by peer, and which texts are the longest of their peers."""

    rows: Counter[int] = field(default_factory=Counter)
    texts: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    longest: dict[str, list[_Text]] = field(default_factory=lambda: defaultdict(list))

    def see(self, view: RowView, layout: Layout) -> None:
        """Measure a row's texts."""
        self.rows[_rounded(sum(len(cell.text) for cell in view.cells))] += 1
        for cell in view.cells:
            if cell.part in ("id", "label") or cell.peer in layout.closed:
                continue
            length = len(cell.text)
            self.texts[cell.peer][length] += 1
            if length >= _SHORTEST:
                is_whole = cell.text.rstrip()[-1:] in _ENDS
                self.longest[cell.peer].append(
                    (length, is_whole, view.origin, cell.field, zlib.crc32(cell.text.encode("utf-8", "surrogatepass")))
                )
        for peer, longest in self.longest.items():
            if len(longest) > 2 * _KEPT:
                self.longest[peer] = _longest(longest)

    def take(self, other: Lengths) -> None:
        """Add the lengths of other rows."""
        self.rows += other.rows
        for peer, counts in other.texts.items():
            self.texts[peer] += counts
        for peer, longest in other.longest.items():
            self.longest[peer] = _longest(self.longest[peer] + longest)

    def settled(self) -> Iterator[Finding]:
        """Texts that end at a limit, and texts that are far longer than all others."""
        for peer, counts in self.texts.items():
            if counts.total() < _FEWEST:
                continue
            longest = max(counts)
            yield from self._limit(peer, longest, counts[longest], counts.total())
            yield from self._far(peer, counts)

    def _limit(self, peer: str, longest: int, many: int, total: int) -> Iterator[Finding]:
        at_limit = [each for each in self.longest[peer] if each[0] == longest]
        open_ended = [each for each in at_limit if not each[1]]
        before = sum(self.texts[peer][longest - back] for back in range(1, 6))
        distinct = len({each[4] for each in at_limit})
        if longest < _SHORTEST or distinct < 3 or 2 * len(open_ended) < many or many < 2 * before:
            return
        if many > _MANY * total:
            _, _, origin, _, _ = at_limit[0]
            found = (
                f"{many:,} of {total:,} texts have exactly {longest:,} characters, and none has more: they were cut."
            )
            mend = "Export the data without the limit, unless excerpts are meant."
            yield Finding("length-limit", "warning", origin.file, None, peer, found, mend)
            return
        for _, _, origin, place, _ in open_ended:
            found = f"the text has exactly {longest:,} characters, as {many} of {total:,} have and none has more: it was cut."
            mend = "Export the data without the limit, or leave this row out."
            yield Finding("length-limit", "error", origin.file, origin.line, place, found, mend)

    def _far(self, peer: str, counts: Counter[int]) -> Iterator[Finding]:
        high = quantile(counts, 0.98)
        for length, _, origin, place, _ in self.longest[peer]:
            if length > max(_FAR * high, 2_000):
                found = f"the text has {length:,} characters; 98 of 100 have {high:,} at most."
                mend = "See whether several rows ran together; cut it, or leave it out."
                yield Finding("far-longer", "warning", origin.file, origin.line, place, found, mend)


def _longest(texts: list[_Text]) -> list[_Text]:
    return sorted(texts, key=lambda each: -each[0])[:_KEPT]


def _rounded(length: int) -> int:
    """Lengths to three digits, so that there are few of them however many rows there are."""
    step = int(10 ** max(0, len(str(length)) - 3))
    return length // step * step


def quantile(counts: Counter[int], share: float) -> int:
    """The length that so large a share of the texts does not pass."""
    left = share * counts.total()
    for length in sorted(counts):
        left -= counts[length]
        if left <= 0:
            return length
    return max(counts)
