"""What the data check tells, and what its checks note while rows pass by.

A finding is a fault at a place. A suspicion is something that is a fault only where it is rare: an answer without a full
stop is cut off among a thousand that have one, and ordinary where half of them have none. Suspicions are kept with the
number of peers that were looked at, and become findings when the whole set has been seen. Those that are too common to be
told one by one are told in one word on the whole set, which is no finding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from luthier.types import Origin

Severity = Literal["error", "warning"]
"""An error spoils training; a warning is to be looked at."""

MOST_KEPT = 20_000
"""Suspicions of one kind among one sort of peers that are kept; more are only counted."""

ALWAYS_FEW = 2
"""So many are rare in any set, however small."""


@dataclass(frozen=True)
class Finding:
    """One fault: its kind, where it is, what was found there, and what to do about it.

    line is None for what concerns the whole set; field is None for what concerns the whole row. instead: what should stand
    in the field, where that is known for sure.
    """

    kind: str
    severity: Severity
    file: str
    line: int | None
    field: str | None
    found: str
    mend: str
    instead: str | None = None

    @property
    def where(self) -> str:
        """The place in words."""
        parts = [self.file]
        parts += [f"line {self.line}"] if self.line is not None else []
        parts += [f"field {self.field!r}"] if self.field is not None else []
        return ", ".join(parts)

    def as_json(self) -> dict[str, object]:
        """The finding as `--json` prints it."""
        return {
            "kind": self.kind,
            "severity": self.severity,
            "file": self.file,
            "line": self.line,
            "field": self.field,
            "found": self.found,
            "mend": self.mend,
        }


@dataclass(frozen=True)
class Suspicion:
    """A finding that holds if at most the share `limit` of its peers look like it. Lower levels are surer."""

    level: int
    limit: float
    finding: Finding


@dataclass(frozen=True)
class Common:
    """Suspicions of one kind that are too common among their peers to be told one by one: a word on the set, and no finding.

    number: how many there are. of: how many peers were looked at. example: the first of them. has_told: whether rarer ones of
    the kind are findings.
    """

    kind: str
    number: int
    of: int
    example: Finding
    has_told: bool

    @property
    def said(self) -> str:
        """The word on the set."""
        more = " more" if self.has_told else ""
        return (
            f"{self.kind}: {self.number:,}{more} of {self.of:,} that were looked at may have it, too many to be told one by one. "
            f"See whether the set is meant to be so; look first at {self.example.where}: {self.example.found}"
        )

    def as_json(self) -> dict[str, object]:
        """The word as `--json` prints it."""
        example = {
            key: value for key, value in self.example.as_json().items() if key in ("file", "line", "field", "found")
        }
        return {"kind": self.kind, "number": self.number, "of": self.of, **example, "said": self.said}

    def joined(self, other: Common) -> Common:
        """The same of two sets of peers."""
        has_told = self.has_told or other.has_told
        return Common(self.kind, self.number + other.number, self.of + other.of, self.example, has_told)


def by_kind(words: Iterable[Common]) -> tuple[Common, ...]:
    """One word a kind, in the order of the kinds' names."""
    found: dict[str, Common] = {}
    for word in words:
        found[word.kind] = found[word.kind].joined(word) if word.kind in found else word
    return tuple(found[kind] for kind in sorted(found))


@dataclass
class Notes:
    """What was noted of some rows. Notes of two runs of rows are put together with `take`.

    texts: how many texts each peer has, which is what a kind of fault is compared with that notes nothing else in `peers`.
    """

    findings: list[Finding] = field(default_factory=list)
    peers: Counter[tuple[str, str]] = field(default_factory=Counter)
    texts: Counter[str] = field(default_factory=Counter)
    suspicions: dict[tuple[str, str], list[Suspicion]] = field(default_factory=dict)
    uncounted: Counter[tuple[str, str]] = field(default_factory=Counter)
    num_rows: int = 0

    def tell(self, kind: str, severity: Severity, origin: Origin, place: str | None, found: str, mend: str) -> None:
        """Note a fault that is one in any set."""
        self.findings.append(Finding(kind, severity, origin.file, origin.line, place, found, mend))

    def looked(self, kind: str, peer: str, count: int = 1) -> None:
        """Note that peers were looked at for a kind of fault."""
        self.peers[kind, peer] += count

    def suspect(self, peer: str, finding: Finding, limit: float, level: int = 0) -> None:
        """Note what is a fault if it is rare among its peers."""
        key = (finding.kind, peer)
        kept = self.suspicions.setdefault(key, [])
        if len(kept) < MOST_KEPT:
            kept.append(Suspicion(level, limit, finding))
        else:
            self.uncounted[key] += 1

    def take(self, other: Notes) -> None:
        """Add what was noted of other rows."""
        self.num_rows += other.num_rows
        self.findings += other.findings
        self.peers.update(other.peers)
        self.texts.update(other.texts)
        self.uncounted.update(other.uncounted)
        for key, more in other.suspicions.items():
            kept = self.suspicions.setdefault(key, [])
            room = MOST_KEPT - len(kept)
            kept += more[:room]
            self.uncounted[key] += len(more[room:])

    def settled(self) -> tuple[list[Finding], tuple[Common, ...]]:
        """The suspicions that are rare enough to be faults; of each kind that has others, one word on the whole set."""
        findings: list[Finding] = []
        common: list[Common] = []
        for (kind, peer), suspicions in self.suspicions.items():
            num_peers = self.peers[kind, peer] if (kind, peer) in self.peers else self.texts[peer]
            num_uncounted = self.uncounted[kind, peer]
            rare = list(self._rare(suspicions, num_peers, num_uncounted))
            findings += rare
            told = set(rare)
            left = dict.fromkeys(each.finding for each in suspicions if each.finding not in told)
            if left:
                number = len(left) + num_uncounted
                # peers are none where so many rows ask the same that several answers to one question seem meant
                of = max(number, num_peers or self.num_rows)
                common.append(Common(kind, number, of, next(iter(left)), bool(rare)))
        return findings, by_kind(common)

    def _rare(self, suspicions: list[Suspicion], num_peers: int, num_uncounted: int) -> Iterator[Finding]:
        """Level by level, as long as all so far are few: of their peers, and the rows that they are in of all rows."""
        so_far, rows = num_uncounted, set[tuple[str, int | None]]()
        for level in sorted({suspicion.level for suspicion in suspicions}):
            of_level = [suspicion for suspicion in suspicions if suspicion.level == level]
            so_far += len(of_level)
            rows |= {(suspicion.finding.file, suspicion.finding.line) for suspicion in of_level}
            limit = max(suspicion.limit for suspicion in of_level)
            if so_far > max(ALWAYS_FEW, limit * num_peers) or len(rows) > max(ALWAYS_FEW, limit * self.num_rows):
                return
            yield from (suspicion.finding for suspicion in of_level)


def by_place(findings: list[Finding], files: Mapping[str, int]) -> list[Finding]:
    """Findings in the order of the files and their lines, each once; what concerns a whole set comes last."""
    unique = dict.fromkeys(findings)
    return sorted(
        unique, key=lambda one: (one.line is None, files.get(one.file, len(files)), one.line or 0, one.field or "")
    )


def excerpt(text: str, start: int = 0, end: int | None = None, around: int = 20) -> str:
    """A place in a text, with a little of what stands around it, so that signs which cannot be seen are seen."""
    stop = min(len(text), start + 40) if end is None else min(end, start + 60)
    piece = text[max(0, start - around) : stop + around]
    dots = ("…" if start > around else "", "…" if stop + around < len(text) else "")
    return f"{dots[0]}{ascii_of_unseen(piece)}{dots[1]}"


def ascii_of_unseen(text: str) -> str:
    """The text with what has no shape of its own written as an escape."""
    return "".join(
        sign if sign.isprintable() and sign != "\ufffd" else sign.encode("unicode_escape").decode() for sign in text
    )
