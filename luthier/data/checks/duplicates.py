"""Rows that come twice: exactly, nearly, in training and validation, or with another answer the second time.

Of each row three digests are kept (all of it, what it asks, what it answers) and its place; its text goes to a file that
grows on the disk. Exact copies are found by sorting digests, near ones by MinHash: rows that met in a bucket are compared by
the true Jaccard similarity of their shingles, the asking and the answering half each for itself, so that a long template
before a short question makes no duplicates.

How similar is too similar depends on the set. Customers ask for their card in much the same words, and generated sets are
made from templates. So there are four levels of similarity, and a level counts only while few rows are at it or above.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.data.checks.findings import Finding, Notes, Severity, excerpt
from luthier.data.checks.minhash import Buckets, MinHash, band_keys, shingle_array, shingles, words_of
from luthier.data.checks.preferences import sides_of
from luthier.data.checks.view import Layout, RowView, halves_of, normal
from luthier.types import Origin

KINDS: Mapping[str, Severity] = {
    "exact-duplicate": "error",
    "near-duplicate": "warning",
    "leak": "error",
    "near-leak": "warning",
    "contradictory-label": "error",
    "contradictory-answer": "warning",
}

LEVELS = ((0.98, 0.03), (0.95, 0.02), (0.85, 0.004), (0.75, 0.002), (0.7, 0.001))
"""Jaccard similarity from which rows are near duplicates, and the share of rows up to which that is rare."""

_MOST_NEARLY_ALIKE = 0.004
"""Share of rows up to which a label other than that of a row with nearly the same text is a fault."""

_DIGITS = re.compile(r"\d+")
_PIECE = "\x1f"
_MOST_PIECES = 4
_SHORT = 200
_SHORTEST = 12
_SHORTEST_PARAGRAPH = 200
"""Headings and short lines come again in any book."""

Sets = tuple[frozenset[int | str], ...]

_HELD_IN_MEMORY = 64 << 20


@dataclass(frozen=True)
class Pair:
    """A better and a worse answer to what is asked: a digest of it, that of the two the other way round, and the better's field."""

    own: int
    turned: int
    field: str


@dataclass(frozen=True)
class Digest:
    """What is kept of a row."""

    origin: Origin
    is_held_out: bool
    row: int
    given: int
    answer: int
    answer_field: str | None
    is_closed: bool
    is_short: bool
    is_prose: bool
    text: bytes
    pair: Pair | None = None


@dataclass
class Digests:
    """The digests of some rows, with the keys of their buckets."""

    rows: list[Digest] = field(default_factory=list)
    keys: list[NDArray[np.uint64]] = field(default_factory=list)


def digest_rows(views: Sequence[RowView], layout: Layout, is_held_out: bool, minhash: MinHash) -> Digests:
    """What is kept of these rows."""
    rows = [digest_of(view, layout, is_held_out) for view in views]
    sets = [shingle_array(words_of(row.text.decode("utf-8", "surrogatepass"))) for row in rows]
    return Digests(rows, [band_keys(minhash.signatures(sets))] if rows else [])


def digest_of(view: RowView, layout: Layout, is_held_out: bool) -> Digest:
    """The digests of a row; identity numbers are no part of them, capitals and spacing only of that of the whole."""
    halves = halves_of(view, layout)
    values = {key: value for key, value in view.values.items() if key not in layout.numbering}
    whole = json.dumps(_without_ids(values), sort_keys=True, ensure_ascii=False, default=str)
    pieces, answer = [normal(piece) for piece in halves.pieces], normal(halves.answer)
    given = " ".join(filter(None, pieces))
    text = _PIECE.join(pieces) + ("\0" + answer if halves.answer_field is not None and not halves.is_closed else "")
    return Digest(
        view.origin,
        is_held_out,
        _hash(whole),
        _hash(given),
        _hash(answer),
        halves.answer_field,
        halves.is_closed,
        len(given) < (_SHORTEST_PARAGRAPH if layout.is_prose else _SHORTEST),
        layout.is_prose,
        text.encode("utf-8", "surrogatepass"),
        _pair_of(view),
    )


def _pair_of(view: RowView) -> Pair | None:
    sides = sides_of(view.values)
    if sides is None:
        return None
    asked = normal("\n".join(cell.text for cell in view.cells if cell.part not in ("answer", "id")))
    name, better, worse = sides
    return Pair(_hash(f"{asked}\0{better}\0{worse}"), _hash(f"{asked}\0{worse}\0{better}"), name)


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_ids(each) for key, each in value.items() if key not in _NESTED_IDS}
    if isinstance(value, list):
        return [_without_ids(each) for each in value]
    return value


_NESTED_IDS = frozenset({"message_id", "parent_id", "message_tree_id"})


def _hash(text: str) -> int:
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


# ── all rows together ───────────────────────────────────────────────────────────────────────────────────────────────


class Copies:
    """The digests of all rows. Use it as a context: it keeps files while it is open."""

    def __init__(self, folder: Path, rows_in_memory: int) -> None:
        self._files: dict[str, int] = {}
        self._fields: dict[str | None, int] = {}
        self._line, self._file, self._field = array("q"), array("i"), array("i")
        self._row, self._given, self._answer = array("q"), array("q"), array("q")
        self._pairs: dict[int, int] = {}  # a pair of answers → the first row that has it
        self._turned: list[tuple[int, Pair]] = []
        self._flags, self._ends = array("b"), array("q", [0])
        self._texts = tempfile.SpooledTemporaryFile(_HELD_IN_MEMORY, dir=str(folder))  # noqa: SIM115 (closed by close)
        self._buckets = Buckets(folder, rows_in_memory)

    def close(self) -> None:
        """Let go of the texts."""
        self._texts.close()

    def take(self, digests: Digests) -> None:
        """Add rows."""
        first = len(self._line)
        for one in digests.rows:
            self._line.append(one.origin.line)
            self._file.append(self._files.setdefault(one.origin.file, len(self._files)))
            self._field.append(self._fields.setdefault(one.answer_field, len(self._fields)))
            self._row.append(one.row)
            self._given.append(one.given)
            self._answer.append(one.answer)
            self._flags.append(one.is_held_out | one.is_closed << 1 | one.is_short << 2 | one.is_prose << 3)
            self._ends.append(self._ends[-1] + len(one.text))
            self._texts.write(one.text)
            if one.pair is not None:
                self._pairs.setdefault(one.pair.own, len(self._line) - 1)
                self._turned.append((len(self._line) - 1, one.pair))
        for keys in digests.keys:
            self._buckets.add(np.arange(first, first + len(keys), dtype=np.int64), keys)

    def settled(self, notes: Notes) -> Iterator[Finding]:
        """What comes twice. Near copies and contradictions go to the notes: they are faults where they are rare."""
        if not self._line:
            return
        copies = set[int]()
        for group in _groups(np.frombuffer(self._row, np.int64)):
            yield from self._exact(group, copies)
        leaked = set[tuple[int, int]]()
        for group in _groups(np.frombuffer(self._given, np.int64)):
            yield from self._leaks(group, leaked)
        yield from self._turned_round()
        self._contradictions(notes)
        self._near(copies, leaked, notes)

    def exact_copies(self) -> set[tuple[str, int]]:
        """The places of rows that stand before, among rows of the same kind (training or validation)."""
        copies = set[int]()
        for group in _groups(np.frombuffer(self._row, np.int64)):
            list(self._exact(group, copies))
        return {(self._origin(row).file, self._origin(row).line) for row in copies}

    def _exact(self, group: NDArray[np.int64], copies: set[int]) -> Iterator[Finding]:
        for is_held_out in (0, 1):
            own = [int(row) for row in group if self._flags[row] & 1 == is_held_out and self._flags[row] & 12 != 12]
            copies.update(own[1:])
            for row in own[1:]:
                found = f"the row is the same as {self._said(own[0], row)}."
                yield self._finding("exact-duplicate", row, None, found, "Keep one of them.")

    def _leaks(self, group: NDArray[np.int64], leaked: set[tuple[int, int]]) -> Iterator[Finding]:
        """What is asked in training and in validation, told at both places."""
        held_out = [int(row) for row in group if self._flags[row] & 1 and not self._flags[row] & 4]
        train = [int(row) for row in group if not self._flags[row] & 1]
        if not held_out or not train:
            return
        for row, other in [(row, held_out[0]) for row in train] + [(row, train[0]) for row in held_out]:
            what = "training" if self._flags[other] & 1 == 0 else "validation"
            found = f"the same is asked in {what}, {self._said(other, row)}: validation would measure what was learned by heart."
            leaked.add((min(row, other), max(row, other)))
            yield self._finding("leak", row, None, found, "Keep it in one of the two, best out of training.")

    def _turned_round(self) -> Iterator[Finding]:
        """The same two answers, of which another is the better one in an earlier row."""
        for row, pair in self._turned:
            other = self._pairs.get(pair.turned)
            if other is not None and other < row:
                found = f"the better and the worse answer are the other way round than in {self._said(other, row)}."
                mend = "Keep the right one of the two rows."
                yield self._finding("contradictory-label", row, pair.field, found, mend)

    def _contradictions(self, notes: Notes) -> None:
        """The same asked twice with other answers."""
        repeated = 0
        given = np.frombuffer(self._given, np.int64)
        for group in _groups(given):
            rows = [int(row) for row in group]
            answers = Counter(self._answer[row] for row in rows)
            is_closed = bool(self._flags[rows[0]] & 2)
            if not is_closed:
                repeated += len(rows)
            if len(answers) < 2 or self._field_of(rows[0]) is None:
                continue
            kind = "contradictory-label" if is_closed else "contradictory-answer"
            (most, many), (_, next_many) = answers.most_common(2)
            for row in rows:
                if many > next_many and self._answer[row] == most:
                    continue
                other = next(each for each in rows if self._answer[each] != self._answer[row])
                found = f"the same is asked as in {self._said(other, row)}, and the answer is another."
                mend = "Keep the right one, or say in the input what they differ in."
                limit = 0.03 if is_closed else 0.02
                notes.suspect("", self._finding(kind, row, self._field_of(row), found, mend), limit)
        notes.looked("contradictory-label", "", len(given))
        # several answers to one question are meant where many questions come again
        notes.looked("contradictory-answer", "", len(given) if repeated <= max(10, 0.03 * len(given)) else 0)

    def _near(self, copies: set[int], leaked: set[tuple[int, int]], notes: Notes) -> None:
        nearest: dict[tuple[str, int], tuple[int, int, float]] = {}
        similar = lru_cache(maxsize=8192)(self._sets)
        for one, other in self._buckets.pairs():
            first, second = int(one), int(other)
            if self._flags[second] & 2 and self._given[first] == self._given[second] and self._differ(first, second):
                continue  # the same text with another label, which is told as a contradiction
            if first in copies or second in copies or (first, second) in leaked or self._flags[second] & 12 == 12:
                continue
            is_leak = self._flags[first] & 1 != self._flags[second] & 1
            kind = "near-leak" if is_leak else "near-duplicate"
            if (known := nearest.get((kind, second))) is not None and known[0] == 0:
                continue
            if _DIGITS.findall(self._text(first)) != _DIGITS.findall(self._text(second)):
                continue  # rows that differ in a number speak of something else
            likeness = _likeness(similar(first), similar(second))
            level = next((level for level, (least, _) in enumerate(LEVELS) if likeness >= least), None)
            if level is not None and (known is None or level < known[0]):
                nearest[kind, second] = (level, first, likeness)
        for (kind, row), (level, other, likeness) in sorted(nearest.items(), key=lambda item: item[0][1]):
            self._tell_near(kind, row, other, level, likeness, notes)
        for kind in ("near-duplicate", "near-leak"):
            notes.looked(kind, "", len(self._line))

    def _tell_near(self, kind: str, row: int, other: int, level: int, likeness: float, notes: Notes) -> None:
        where = "" if kind == "near-duplicate" else "training, " if not self._flags[other] & 1 else "validation, "
        text = excerpt(self._text(other).replace("\0", " ").replace(_PIECE, " "), 0, 50)
        is_labelled = self._flags[row] & 2 and self._answer[row] != self._answer[other]
        if is_labelled and kind == "near-duplicate" and level <= 1:
            found = f"nearly the same is asked as in {self._said(other, row)}, and the label is another: {text}."
            mend = "Keep the right one, or say in the input what they differ in."
            finding = self._finding("contradictory-label", row, self._field_of(row), found, mend)
            notes.suspect("near", finding, _MOST_NEARLY_ALIKE)
            notes.peers["contradictory-label", "near"] = len(self._line)
        found = f"the row is nearly the same as {where}{self._said(other, row)} (similarity {likeness:.2f}): {text}."
        mend = "Keep one of them." if kind == "near-duplicate" else "Keep it in one of the two, best out of training."
        notes.suspect("", self._finding(kind, row, None, found, mend), LEVELS[level][1], level)
        if kind == "near-leak":
            found = f"the row is nearly the same as validation, {self._said(row, other)} (similarity {likeness:.2f}): {text}."
            notes.suspect("other", self._finding(kind, other, None, found, mend), LEVELS[level][1], level)
            notes.peers[kind, "other"] = len(self._line)

    def _differ(self, one: int, other: int) -> bool:
        return self._answer[one] != self._answer[other]

    # ── of one row ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _text(self, row: int) -> str:
        self._texts.seek(self._ends[row])
        data: bytes = self._texts.read(self._ends[row + 1] - self._ends[row])
        return data.decode("utf-8", "surrogatepass")

    def _sets(self, row: int) -> tuple[Sets, ...]:
        """The shingles of what a row asks, piece by piece, and of what it answers."""
        asked, *answer = self._text(row).split("\0")
        pieces = asked.split(_PIECE)
        if len(pieces) > _MOST_PIECES:
            pieces = [" ".join(pieces)]
        return tuple(map(_shingles_of, pieces)), *((_shingles_of(each),) for each in answer)

    def _origin(self, row: int) -> Origin:
        return Origin(list(self._files)[self._file[row]], self._line[row])

    def _field_of(self, row: int) -> str | None:
        return list(self._fields)[self._field[row]]

    def _said(self, row: int, beside: int) -> str:
        origin = self._origin(row)
        return f"line {origin.line}" if origin.file == self._origin(beside).file else str(origin)

    def _finding(self, kind: str, row: int, place: str | None, found: str, mend: str) -> Finding:
        origin = self._origin(row)
        return Finding(kind, KINDS[kind], origin.file, origin.line, place, found, mend)


def _groups(keys: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """The rows that share a key, at least two, in their order."""
    order = np.argsort(keys, kind="stable")
    ends = np.flatnonzero(np.diff(keys[order])) + 1
    starts = np.concatenate([[0], ends])
    stops = np.concatenate([ends, [len(keys)]])
    for index in np.flatnonzero(stops - starts > 1):
        yield np.sort(order[starts[index] : stops[index]])


def _shingles_of(text: str) -> frozenset[int | str]:
    """Words and pairs of words; of a short text four letters in a row each, so that one word more is no great change."""
    words = words_of(text)
    letters = " ".join(words)
    if len(letters) <= _SHORT:
        return frozenset(letters[at : at + 4] for at in range(max(1, len(letters) - 3)))
    return frozenset(shingles(words))


def _likeness(one: Sequence[Sets], other: Sequence[Sets]) -> float:
    """The lesser similarity of the two halves; an answer may differ a little more than what is asked."""
    if len(one) != len(other):
        return 0.0
    values = [_alike(a, b) for a, b in zip(one, other, strict=True)]
    return min(values[0], values[1] + 0.1) if len(values) == 2 else values[0]


def _alike(one: Sets, other: Sets) -> float:
    """The least Jaccard similarity of the pieces, so that a long text does not hide that another is asked about it; that of all
    together where the two have another number of them."""
    if len(one) != len(other):
        one, other = (frozenset().union(*one),), (frozenset().union(*other),)
    return min(len(a & b) / len(a | b) if a | b else 1.0 for a, b in zip(one, other, strict=True))
