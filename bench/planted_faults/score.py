"""Runs the check on every copy and every original, and compares what it says with what was planted.

A fault counts as found where the check says something at its row, or at the row that it copies, which it does not say of the
original. At a row of an original, anything said is a false alarm, unless the row is known to be at fault by itself.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from bench.figures import table
from bench.planted_faults.forms import CleanFile
from bench.planted_faults.plant import Fault, notes_on, read_manifest, read_sources
from bench.planted_faults.sources import SOURCES, Source, steps_of

_VALIDATION = {source.validation for source in SOURCES}

_ENDED_WELL = (0, 3)
"""Exit codes of a check that looked at the data: nothing wrong, or something."""

_SHOWN_MISSES = 3
_SHOWN_ERROR_LINES = 4


class CheckFailed(Exception):
    """The command that checks cannot be run at all."""


Rows = dict[str, dict[int, int]]
"""Of each file, the index of the row that a line belongs to."""


@dataclass(frozen=True)
class Finding:
    """One thing that the check says, at a row of a file."""

    place: str
    index: int
    kind: str
    severity: str
    field: str


@dataclass(frozen=True)
class KindScore:
    """How a kind of fault was found; `named` counts what the check called those that it found."""

    kind: str
    planted: int
    found: int
    right_field: int
    named: dict[str, int]
    missed: tuple[Fault, ...]
    misplaced: tuple[Fault, ...]


@dataclass(frozen=True)
class FileScore:
    """What was said of a clean file. `true` and `false` are rows with findings, known to be at fault or not; `beside` are rows
    of its copy that were newly reported and that nothing was done to."""

    file: str
    is_validation: bool
    rows: int
    true: int
    false: int
    beside: int
    false_kinds: dict[str, int]


@dataclass(frozen=True)
class Scored:
    """All of it; `failures` are the files that could not be checked, and why."""

    kinds: tuple[KindScore, ...]
    files: tuple[FileScore, ...]
    failures: tuple[str, ...]
    seconds: float


# ── running the check ───────────────────────────────────────────────────────────────────────────────────────────────


def measured(out: Path, command: str) -> Scored:
    """The check's findings on what `plant` wrote, compared. Raises: CannotPlant, CheckFailed."""
    faults = read_manifest(out)
    sources = [source for source in SOURCES if (out / "clean" / source.place).is_file()]
    files = read_sources(out / "clean", sources)
    rows = {place: file.index_at() for place, file in files.items()}
    notes = notes_on(files)
    began, failures = monotonic(), []
    of_clean: list[Finding] = []
    of_copies: list[Finding] = []
    for source in sources:
        for folder, findings in ((out / "clean", of_clean), (out / "planted", of_copies)):
            try:
                findings += _found_by(command, folder, source, files, rows)
            except _NotChecked as error:
                failures.append(f"{folder.name}/{source.place}: {error}")
    seconds = monotonic() - began
    said = {(finding.place, finding.index, finding.kind, _names(finding.field)) for finding in of_clean}
    new = [
        finding
        for finding in of_copies
        if (finding.place, finding.index, finding.kind, _names(finding.field)) not in said
    ]
    known = {(place, index) for place, found in notes.items() for index in found}
    kinds = _kinds_scored(faults, new, rows)
    return Scored(kinds, _files_scored(faults, of_clean, new, rows, known), tuple(failures), seconds)


class _NotChecked(Exception):
    """The check ended without saying anything of the file."""


def _found_by(command: str, folder: Path, source: Source, files: dict[str, CleanFile], rows: Rows) -> list[Finding]:
    words = [*shlex.split(command), str(folder / source.place)]
    words += [] if source.validation is None else ["--validation", str(folder / source.validation)]
    try:
        ended = subprocess.run([*words, "--json"], capture_output=True, check=False)
    except OSError as error:
        raise CheckFailed(f"{words[0]} cannot be run: {error.strerror}; name the command with --check.") from error
    if ended.returncode not in _ENDED_WELL:
        lines = ended.stderr.decode(errors="replace").strip().splitlines()[-_SHOWN_ERROR_LINES:]
        raise _NotChecked(f"exit code {ended.returncode}. {' '.join(lines)}")
    try:
        said = json.loads(ended.stdout)["findings"]
    except (ValueError, KeyError, TypeError) as error:
        raise _NotChecked("its output is not a JSON document with findings.") from error
    return list(_at_rows(said, source, files, rows))


def _at_rows(
    said: Iterable[dict[str, Any]], source: Source, files: dict[str, CleanFile], rows: Rows
) -> Iterable[Finding]:
    """Those findings that are about a row."""
    for finding in said:
        is_validation = source.validation is not None and _is_at(finding.get("file"), source.validation)
        place = source.validation if is_validation and source.validation is not None else source.place
        index = rows[place].get(finding.get("line") or 0)
        if index is not None:
            field = _by_name(finding.get("field") or "", files[place])
            yield Finding(place, index, str(finding.get("kind")), str(finding.get("severity")), field)


def _is_at(file: str | None, place: str) -> bool:
    """Whether a file, as the check names it, is the one of that place."""
    return file is not None and Path(file).parts[-2:] == Path(place).parts[-2:]


def _by_name(field: str, file: CleanFile) -> str:
    """A column that has no name in the file may be called by its number: column 2."""
    numbered = re.fullmatch(r"column[ _]?(\d+)", field)
    names = list(file.records[0].values)
    if numbered is None or not 1 <= int(numbered[1]) <= len(names):
        return field
    return names[int(numbered[1]) - 1]


# ── comparing ───────────────────────────────────────────────────────────────────────────────────────────────────────

_SAME_NAMES = {
    "messages": "conversations", "content": "value", "role": "from", "tag": "tags", "token": "tokens", "sentence": "text",
}  # fmt: skip
_ABOVE_A_QUESTION = ("data", "paragraphs", "qas")


def _names(field: str) -> tuple[str, ...]:
    """A field's path, step by step; names that mean the same thing are one."""
    steps = [step for step in steps_of(field) if step != "$"]
    while len(steps) >= 2 and steps[0] in _ABOVE_A_QUESTION and steps[1].isdigit():
        del steps[:2]
    return tuple(_SAME_NAMES.get(step, step) for step in steps)


def is_right_field(said: str, fault: Fault) -> bool:
    """Whether the field that was said leads to the one at fault, or lies within it; a row as a whole has no wrong one."""
    if not fault.field:
        return True
    found = _names(said)
    if not found:
        return False
    return any(found[: len(names)] == names[: len(found)] for names in map(_names, (fault.field, *fault.also)))


def _kinds_scored(faults: Sequence[Fault], new: Sequence[Finding], rows: Rows) -> tuple[KindScore, ...]:
    at: dict[tuple[str, int], list[Finding]] = defaultdict(list)
    for finding in new:
        at[finding.place, finding.index].append(finding)
    hits = {fault: [finding for row in _rows_of(fault, rows) for finding in at.get(row, ())] for fault in faults}
    scores = []
    for kind in dict.fromkeys(fault.kind for fault in faults):
        own = [fault for fault in faults if fault.kind == kind]
        found = [fault for fault in own if hits[fault]]
        right = [fault for fault in found if any(is_right_field(hit.field, fault) for hit in hits[fault])]
        named = Counter(name for fault in found for name in {hit.kind for hit in hits[fault]})
        missed = tuple(fault for fault in own if not hits[fault])
        misplaced = tuple(fault for fault in found if fault not in right)
        scores.append(KindScore(kind, len(own), len(found), len(right), dict(named.most_common()), missed, misplaced))
    return tuple(scores)


def _rows_of(fault: Fault, rows: Rows) -> list[tuple[str, int]]:
    """File and index of the row at fault, and of its partner."""
    own = (fault.file, rows[fault.file][fault.line])
    return [own] if fault.partner is None else [own, (fault.partner.file, rows[fault.partner.file][fault.partner.line])]


def _files_scored(
    faults: Sequence[Fault],
    of_clean: Sequence[Finding],
    new: Sequence[Finding],
    rows: Rows,
    known: set[tuple[str, int]],
) -> tuple[FileScore, ...]:
    touched = {row for fault in faults for row in _rows_of(fault, rows)}
    scores = []
    for place, own in rows.items():
        said = {(finding.place, finding.index) for finding in of_clean if finding.place == place}
        false = said - known
        kinds = {
            (finding.index, f"{finding.kind} ({finding.severity})")
            for finding in of_clean
            if (finding.place, finding.index) in false
        }
        beside = {(finding.place, finding.index) for finding in new if finding.place == place} - touched
        names = dict(Counter(kind for _, kind in kinds).most_common())
        scores.append(
            FileScore(
                place, place in _VALIDATION, len(set(own.values())), len(said & known), len(false), len(beside), names
            )
        )
    return tuple(scores)


# ── telling ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def document_of(scored: Scored) -> str:
    """The figures as one JSON document."""
    kinds = scored.kinds
    totals = {
        "planted": sum(kind.planted for kind in kinds),
        "found": sum(kind.found for kind in kinds),
        "right_field": sum(kind.right_field for kind in kinds),
        "rows": sum(file.rows for file in scored.files if not file.is_validation),
        "false_alarms": sum(file.false for file in scored.files if not file.is_validation),
        "validation_rows": sum(file.rows for file in scored.files if file.is_validation),
        "validation_false_alarms": sum(file.false for file in scored.files if file.is_validation),
    }
    return json.dumps({"totals": totals, **asdict(scored)}, ensure_ascii=False, indent=2)


def report(scored: Scored) -> str:
    """The figures as tables: kinds of faults, clean files, and what was missed."""
    parts = [_kinds_table(scored.kinds), _files_table(scored.files), *_misses(scored.kinds)]
    parts += ["Not checked:\n" + "\n".join(f"  {failure}" for failure in scored.failures)] if scored.failures else []
    return "\n\n".join([*parts, f"The checks took {scored.seconds:.0f} s."])


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "–"


def _kinds_table(kinds: Sequence[KindScore]) -> str:
    rows = [
        (
            score.kind, f"{score.planted}", f"{score.found}", f"{score.right_field}",
            ", ".join(f"{name} {times}" for name, times in list(score.named.items())[:3]),
        )
        for score in kinds
    ]  # fmt: skip
    planted, found = sum(score.planted for score in kinds), sum(score.found for score in kinds)
    right = sum(score.right_field for score in kinds)
    rows.append(("all", f"{planted}", f"{found} ({_share(found, planted)})", f"{right} ({_share(right, planted)})", ""))
    return table(("kind", "planted", "found", "right field too", "called"), rows)


def _files_table(files: Sequence[FileScore]) -> str:
    rows = [
        (
            score.file, f"{score.rows}", f"{score.true}", f"{score.false}", _share(score.false, score.rows), f"{score.beside}",
            ", ".join(f"{name} {times}" for name, times in list(score.false_kinds.items())[:3]),
        )
        for score in files
    ]  # fmt: skip
    for name, is_validation in (("all that are trained on", False), ("all for validation", True)):
        own = [score for score in files if score.is_validation is is_validation]
        total, false = sum(score.rows for score in own), sum(score.false for score in own)
        true, beside = sum(score.true for score in own), sum(score.beside for score in own)
        rows.append((name, f"{total}", f"{true}", f"{false}", _share(false, total), f"{beside}", ""))
    head = ("clean file", "rows", "true findings", "false alarms", "share", "beside faults", "called")
    return table(head, rows)


def _misses(kinds: Sequence[KindScore]) -> list[str]:
    """What was not found, and what was found in another field; a few of each kind."""
    told = []
    for head, is_missed in (("Missed", True), ("Another field was named", False)):
        lines = [
            f"  {fault.kind}: {fault.file}, {fault.line}, {fault.field or 'the row'}: {fault.what}"
            for score in kinds
            for fault in (score.missed if is_missed else score.misplaced)[:_SHOWN_MISSES]
        ]
        told += [f"{head}:\n" + "\n".join(lines)] if lines else []
    return told
