"""Labels: names that differ by a capital, a space or a letter; names that only a row or two have; how balanced they are."""

from __future__ import annotations

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from luthier.data.checks.findings import Finding, Severity
from luthier.data.checks.view import Layout, RowView
from luthier.types import Origin

KINDS: Mapping[str, Severity] = {
    "label-variant": "error",
    "unknown-label": "error",
    "label-imbalance": "warning",
}

PLACES_KEPT = 200
"""Places remembered of each label; a label that has more is no rare one."""

_MOST_LABELS = 5_000
_FEWEST = 40
_UNBALANCED = 50


@dataclass
class Labels:
    """How often each label was seen, by field, and where the first of each were. `held_out` is for validation rows."""

    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    places: dict[tuple[str, str], list[tuple[Origin, str]]] = field(default_factory=lambda: defaultdict(list))
    held_out: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def see(self, view: RowView, layout: Layout, is_held_out: bool) -> None:
        """Count a row's labels: of label columns, of answers from a small set, of lists of tags."""
        for peer, place, label in _labels(view, layout):
            counts = self.counts[peer]
            if len(counts) < _MOST_LABELS:
                counts[label] += 1
                places = self.places[peer, label]
                if len(places) < PLACES_KEPT:
                    places.append((view.origin, place))
            if is_held_out:
                self.held_out[peer][label] += 1

    def take(self, other: Labels) -> None:
        """Add the labels of other rows."""
        for peer, counts in other.counts.items():
            self.counts[peer] += counts
        for peer, counts in other.held_out.items():
            self.held_out[peer] += counts
        for key, places in other.places.items():
            self.places[key] += places[: PLACES_KEPT - len(self.places[key])]

    def settled(self) -> Iterator[Finding]:
        """What is wrong with the labels, now that all are known."""
        for peer, counts in self.counts.items():
            if counts.total() >= _FEWEST and len(counts) < _MOST_LABELS:
                yield from self._odd(peer, counts)
                yield from self._unseen(peer, counts)
                yield from self._balance(peer, counts)

    def _odd(self, peer: str, counts: Counter[str]) -> Iterator[Finding]:
        odd = {label: meant for label in counts if (meant := meant_by(label, counts)) is not None}
        rare = rare_labels(counts, odd)
        for label, meant in odd.items():
            found, mend = f"the label is {label!r}, where {counts[meant]:,} rows have {meant!r}.", f"Write {meant!r}."
            yield from self._at(peer, label, "label-variant", found, mend, meant)
        for label in rare:
            found = f"the label {label!r} is on {counts[label]} of {counts.total():,} rows alone."
            yield from self._at(peer, label, "unknown-label", found, "Write one of the other labels, or leave it out.")

    def _unseen(self, peer: str, counts: Counter[str]) -> Iterator[Finding]:
        held_out = self.held_out.get(peer, Counter())
        for label, count in held_out.items():
            if count == counts[label] and sum(held_out.values()) < counts.total() and counts[label] > 2:
                found = f"no training row has the label {label!r}."
                mend = "Give training rows of that class, or leave it out of the validation file."
                yield from list(self._at(peer, label, "unknown-label", found, mend))[:1]

    def _balance(self, peer: str, counts: Counter[str]) -> Iterator[Finding]:
        (most, many), (least, few) = counts.most_common(1)[0], counts.most_common()[-1]
        if "[]" in peer or not 2 <= len(counts) <= 200 or many < _UNBALANCED * few or few < 3:
            return
        origin, _ = self.places[peer, most][0]
        found = f"{many:,} rows have the label {most!r}, and {few:,} have {least!r}."
        mend = "Give more rows of the rare classes, or measure by F1 and not by accuracy."
        yield Finding("label-imbalance", "warning", origin.file, None, peer, found, mend)

    def _at(
        self, peer: str, label: str, kind: str, found: str, mend: str, instead: str | None = None
    ) -> Iterator[Finding]:
        for origin, place in self.places[peer, label]:
            yield Finding(kind, KINDS[kind], origin.file, origin.line, place, found, mend, instead)


def _labels(view: RowView, layout: Layout) -> Iterator[tuple[str, str, str]]:
    for cell in view.cells:
        if (cell.part == "label" or (cell.peer in layout.closed and cell.part != "id")) and cell.text.strip():
            yield cell.peer, cell.field, cell.text
    for leaf in view.leaves:
        value: Any = leaf.value
        if layout.parts.get(leaf.field) == "label" and isinstance(value, bool | int):
            yield leaf.peer, leaf.field, str(value).lower() if isinstance(value, bool) else str(value)


def meant_by(label: str, counts: Counter[str]) -> str | None:
    """The common label that a rare one seems to be; None if it is its own."""
    count = counts[label]
    others = [other for other in counts if counts[other] >= max(3, 5 * count) and other != label]
    for other in others:
        if folded(other) == folded(label):
            return other
    is_code = label.isupper() or len(label) < 5 or "," in label
    if count > max(2, counts.total() // 2000) or is_code or label.isdigit():
        return None
    near = difflib.get_close_matches(label, [other for other in others if not other.isdigit()], n=1, cutoff=0.8)
    return near[0] if near and _is_typo(label, near[0]) else None


def folded(label: str) -> str:
    """The label without what a slip changes: capitals, spaces, hyphens, a full stop."""
    return re.sub(r"[\W_]+", "", label.casefold()) or label


def _is_typo(label: str, other: str) -> bool:
    """Whether one or two letters were added, lost, changed or swapped; digits and short words tell names apart."""
    if re.sub(r"\D", "", label) != re.sub(r"\D", "", other) or abs(len(label) - len(other)) > 2:
        return False
    blocks = difflib.SequenceMatcher(None, label, other, autojunk=False).get_matching_blocks()
    kept = sum(block.size for block in blocks)
    lost = max(len(label), len(other)) - kept
    return label[0] == other[0] and lost <= (1 if max(len(label), len(other)) < 8 else 2)


def rare_labels(counts: Counter[str], explained: Mapping[str, str]) -> list[str]:
    """Labels outside the set: on a row or two, where every other label is on many."""
    total = counts.total()
    rare = [label for label, count in counts.items() if label not in explained and count <= 2]
    usual = [count for label, count in counts.items() if label not in explained and count > 2]
    if not usual or sum(counts[label] for label in rare) > max(3, 0.005 * total):
        return []
    between = sum(1 for count in usual if count < 8)
    return rare if median(usual) >= 10 and between <= max(0, len(usual) // 20) else []
