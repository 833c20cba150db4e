"""The rows written without what can be mended safely; the file that they came from stays as it is.

Mended is what has one right answer: mojibake that reads as UTF-8, signs that nobody sees, white space around a text, a role or
a label spelled otherwise than all others. Exact copies and lines that are no rows are left out. All else is kept, or left out
if asked for.
"""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from luthier.data.checks.checking import Checked, Source
from luthier.data.checks.encoding import joins, repaired_mojibake
from luthier.data.checks.findings import Finding, Notes
from luthier.data.checks.form import NATURALLY, ReadAs
from luthier.data.checks.source import Questions, stream_rows
from luthier.data.reading import Row
from luthier.errors import DataError, UsageError
from luthier.store.files import write_pieces
from luthier.store.places import expanded

WRITTEN = (".jsonl", ".json", ".csv", ".tsv")
_LEFT_OUT = frozenset({"exact-duplicate"})


@dataclass
class Mended:
    """What became of the rows, counted by the kind of fault."""

    num_written: int = 0
    mended: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        """The counts as `--json` prints them."""
        return {
            "rows": self.num_written,
            "mended": dict(self.mended),
            "left_out": dict(self.left_out),
            "kept": dict(self.kept),
        }


def write_mended(
    source: Source, checked: Checked, out: Path, *, drop_faulty: bool, read_as: ReadAs = NATURALLY
) -> Mended:
    """Write the rows of a source that was checked, mended, to `out`: JSON Lines, JSON, CSV or TSV by its ending.

    read_as: how the check read them.
    Raises: UsageError if `out` is one of the source's files or has another ending; DataError for rows that a table cannot
    hold.
    """
    names = (source,) if isinstance(source, str) else source
    if out.suffix.lower() not in WRITTEN:
        raise UsageError(f"--fix writes {', '.join(WRITTEN)}; {out.name} is none of these.", "Choose such a name.")
    if any(expanded(name).exists() and out.exists() and expanded(name).samefile(out) for name in names):
        raise UsageError("--fix names the file that is checked, which is never changed.", "Choose another name.")
    result = Mended()
    rows = _mended_rows(stream_rows(source, lambda text: None, Notes(), read_as), checked, result, drop_faulty)
    write_pieces(out, _pieces(rows, out))
    return result


def _mended_rows(rows: Iterator[Row], checked: Checked, result: Mended, drop_faulty: bool) -> Iterator[Row]:
    by_row: dict[tuple[str, int], list[Finding]] = defaultdict(list)
    for finding in checked.findings:
        if finding.line is not None:
            by_row[finding.file, finding.line].append(finding)
    questions = Questions()
    for row in rows:
        findings = list(_findings_at(row, by_row, questions))
        if (kept := mended_row(row, findings, result, drop_faulty)) is not None:
            result.num_written += 1
            yield kept
    for findings in by_row.values():
        result.left_out.update(finding.kind for finding in findings if finding.kind == "broken-line")


def _findings_at(row: Row, by_row: dict[tuple[str, int], list[Finding]], questions: Questions) -> Iterator[Finding]:
    """The findings at a row, each with the way from there; those at the questions of an article are at the article, those at
    messages at their tree."""
    for path, origin in row.parts.items():
        for finding in by_row.pop((origin.file, origin.line), ()):
            yield replace(finding, field=None if finding.field is None else f"{path}.{finding.field}")
    origins = [each.origin for each in questions.among([row])] if row.path else [row.origin]
    for origin in origins:
        for finding in by_row.pop((origin.file, origin.line), ()):
            way = finding.field
            yield replace(finding, field=None if way is None else way.removeprefix(f"{row.path}."))


def mended_row(row: Row, findings: list[Finding], result: Mended, drop_faulty: bool) -> Row | None:
    """The row without what can be mended of these findings; None if it is to be left out."""
    if not findings:
        return row
    dropped = [finding.kind for finding in findings if finding.kind in _LEFT_OUT and finding.field is None]
    values, rest = row.values, list[str]()
    mended = Counter[str]()
    for finding in findings if not dropped else ():
        better = _with_mended(values, finding)
        if better is not None:
            values = better
            mended[finding.kind] += 1
        else:
            rest.append(finding.kind)
            if drop_faulty and finding.severity == "error":
                dropped.append(finding.kind)
    if dropped:
        result.left_out.update(dropped[:1])
        return None
    result.mended += mended
    result.kept.update(rest)
    return Row(values, row.origin)


def _with_mended(values: dict[str, Any], finding: Finding) -> dict[str, Any] | None:
    """The row's values with one finding mended; None if it cannot be."""
    mend: Callable[[str], str] | None = MENDS.get(finding.kind)
    if finding.instead is not None:
        replacement = finding.instead
        mend = lambda text: replacement  # noqa: E731
    if mend is None or finding.field is None:
        return None
    path = [int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", finding.field)]
    better: dict[str, Any] | None = _replaced(values, path, mend)
    return better


def _replaced(value: Any, path: list[int | str], mend: Callable[[str], str]) -> Any:
    """The value with the text at a path mended; None if there is none, or it stays as it was."""
    if not path:
        better = mend(value) if isinstance(value, str) else None
        return better if better != value else None
    key = path[0]
    is_there = (isinstance(value, dict) and key in value) or (isinstance(value, list) and isinstance(key, int))
    inside = _replaced(value[key], path[1:], mend) if is_there else None
    if inside is None:
        return None
    copy = value.copy()
    copy[key] = inside
    return copy


# ── what has one right answer ───────────────────────────────────────────────────────────────────────────────────────

_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f\u2400]")
_UNSEEN = re.compile(
    "[\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\u00ad\ufff9-\ufffb\u180e\U000e0000-\U000e007f]"
)
_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\x0b\x0c\x85]")


def without_unseen(text: str) -> str:
    """The text without signs that nobody sees; joiners stay where they join."""
    return _UNSEEN.sub(
        lambda match: match[0] if match[0] in "\u200c\u200d" and joins(text, match.start()) else "", text
    )


def reread_bytes(text: str) -> str:
    """The text with bytes that are not UTF-8 read as Windows-1252, or as Latin-1 where that has no sign."""
    return re.sub("[\udc80-\udcff]", lambda match: _read(bytes([ord(match[0]) - 0xDC00])), text)


def _read(data: bytes) -> str:
    try:
        return data.decode("windows-1252")
    except UnicodeDecodeError:
        return data.decode("latin-1")


MENDS: Mapping[str, Callable[[str], str]] = {
    "not-utf8": reread_bytes,
    "mojibake": repaired_mojibake,
    "byte-order-mark": lambda text: text.replace("\ufeff", ""),
    "control-character": lambda text: _CONTROL.sub("", text),
    "invisible-character": without_unseen,
    "unusual-space": lambda text: _SPACES.sub(" ", text),
    "html-entity": html.unescape,
    "stray-space": str.strip,
}


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _pieces(rows: Iterator[Row], out: Path) -> Iterator[bytes]:
    ending = out.suffix.lower()
    if ending == ".jsonl":
        for row in rows:
            yield _json(row) + b"\n"
    elif ending == ".json":
        before = b"[\n"
        for row in rows:
            yield before + _json(row)
            before = b",\n"
        yield b"\n]\n" if before == b",\n" else b"[]\n"
    else:
        yield from _table(rows, "\t" if ending == ".tsv" else ",", out)


def _json(row: Row) -> bytes:
    try:
        return json.dumps(row.values, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:  # half a character can be written as an escape alone
        return json.dumps(row.values, default=str).encode()


def _table(rows: Iterator[Row], delimiter: str, out: Path) -> Iterator[bytes]:
    columns: list[str] | None = None
    for row in rows:
        text = io.StringIO()
        writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
        if columns is None:
            columns = list(row.values)
            writer.writerow(columns)
        if list(row.values) != columns or any(isinstance(value, list | dict) for value in row.values.values()):
            raise DataError(
                f"the row cannot be a line of {out.name}: it has other columns than the first, or values in values.",
                "Give --fix a name that ends in .jsonl.",
                file=row.origin.file,
                line=row.origin.line,
            )
        writer.writerow(row.values.values())
        yield text.getvalue().encode("utf-8", "replace")
