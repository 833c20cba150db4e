"""Places in a text: where an answer or an entity begins and ends must be where it stands.

SQuAD's `answers` with `answer_start` are known by name. Other pairs of columns (start, end) are known by what they point
at in the first rows: the value of another column, or whole words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.data.checks.findings import Finding, Notes, Severity, excerpt
from luthier.data.checks.view import RowView

KINDS: Mapping[str, Severity] = {"wrong-offset": "error"}

_USUAL = 0.95
_USUAL_VALUE = 0.85
"""That a value stands just where two numbers say is hardly ever chance, so fewer rows need to show it."""

_FEWEST = 10
_RARE = 0.05


@dataclass(frozen=True)
class Span:
    """Two columns that are places in a text, and the column whose value stands there; None where they mark whole words."""

    start: str
    end: str
    text: str
    value: str | None


def learn(views: Sequence[RowView]) -> tuple[Span, ...]:
    """The spans among the columns of the first rows."""
    if not views:
        return ()
    columns = list(dict.fromkeys(column for view in views[:50] for column in view.values))
    found = []
    for start in columns:
        end = _end_of(start, columns)
        if end is None:
            continue
        span = next((span for span in _candidates(start, end, columns) if _holds(views, span)), None)
        if span is not None:
            found.append(span)
    return tuple(found)


def _end_of(start: str, columns: Sequence[str]) -> str | None:
    for word, other in (("start", "end"), ("begin", "end"), ("Start", "End"), ("from", "to")):
        if word in start and (name := start.replace(word, other)) in columns:
            return name
    return None


def _candidates(start: str, end: str, columns: Sequence[str]) -> Iterator[Span]:
    others = [column for column in columns if column not in (start, end)]
    number = re.sub(r"\D", "", start)
    texts = sorted(others, key=lambda column: re.sub(r"\D", "", column) != number)
    for text in texts:
        for value in others:
            if value != text:
                yield Span(start, end, text, value)
    for text in texts:
        yield Span(start, end, text, None)


def _holds(views: Sequence[RowView], span: Span) -> bool:
    judged = [right for view in views if (right := _is_right(view.values, span)) is not None]
    return len(judged) >= _FEWEST and sum(judged) >= (_USUAL if span.value is None else _USUAL_VALUE) * len(judged)


def _is_right(values: Mapping[str, Any], span: Span) -> bool | None:
    """Whether the places are right; None for a row that has none."""
    start, end, text = _whole(values.get(span.start)), _whole(values.get(span.end)), values.get(span.text)
    if start is None or end is None or not isinstance(text, str):
        return None
    if span.value is None:
        piece = text[start:end]
        return 0 <= start < end <= len(text) and piece == piece.strip() and _is_whole_word(text, start, end)
    value = values.get(span.value)
    if not isinstance(value, str) or not value:
        return None
    return start >= 0 and text[start:end] == value


def _is_whole_word(text: str, start: int, end: int) -> bool:
    before, after = text[start - 1 : start], text[end : end + 1]
    return not (before.isalnum() and text[start].isalnum()) and not (after.isalnum() and text[end - 1].isalnum())


def _whole(value: Any) -> int | None:
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"-?\d{1,9}(?:\.0)?", value.strip()) and "." not in value else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


# ── a row's places ──────────────────────────────────────────────────────────────────────────────────────────────────


def look(view: RowView, spans: tuple[Span, ...], notes: Notes) -> None:
    """Note places at which something else stands than should."""
    for span in spans:
        is_right = _is_right(view.values, span)
        if is_right is None:
            continue
        notes.looked("wrong-offset", span.start)
        if not is_right:
            place, found = _wrong(view.values, span)
            notes.suspect(span.start, _finding(view, place, found), _RARE, _how_wrong(view.values, span))
    for place, context, answer in _answers(view.values, "", None):
        _answer(view, place, context, answer, notes)


def _how_wrong(values: Mapping[str, Any], span: Span) -> int:
    """How sure it is that a place is wrong: 0 where nothing of that length can stand there, 1 where the value stands nowhere,
    2 where it stands elsewhere, 3 where it differs in capitals alone."""
    text, start, end = str(values[span.text]), _whole(values[span.start]) or 0, _whole(values[span.end]) or 0
    if not 0 <= start < end <= len(text):
        return 0
    if span.value is None:
        return 1
    value = str(values[span.value])
    if end - start != len(value):
        return 0
    if text[start:end].casefold() == value.casefold():
        return 3
    return 2 if value.casefold() in text.casefold() else 1


def _wrong(values: Mapping[str, Any], span: Span) -> tuple[str, str]:
    """Which of the columns is wrong, and how."""
    text, start, end = str(values[span.text]), _whole(values[span.start]) or 0, _whole(values[span.end]) or 0
    there = f"{span.text}[{start}:{end}] is {excerpt(text[max(0, start) : max(0, end)], 0, 30)!r}"
    if span.value is None:
        place = (
            span.end
            if 0 <= start < len(text) and _is_whole_word(text, start, max(start + 1, len(text)))
            else span.start
        )
        return place, f"{there}, not a whole word."
    value = str(values[span.value])
    at = text.find(value)
    if at < 0:
        return span.value, f"{value[:40]!r} does not stand in {span.text}; {there}."
    place = span.end if text[start : start + len(value)] == value and start >= 0 else span.start
    return place, f"{there}, not {value[:40]!r}, which begins at {at}."


def _answers(value: Any, place: str, context: str | None) -> Iterator[tuple[str, str, Any]]:
    """Every object with `answer_start` and `text`, with the context that it is about."""
    if isinstance(value, list):
        for index, element in enumerate(value):
            yield from _answers(element, f"{place}[{index}]", context)
    elif isinstance(value, dict):
        own = next(
            (value[key] for key in ("context", "passage", "paragraph") if isinstance(value.get(key), str)), context
        )
        if "answer_start" in value and "text" in value and own is not None:
            yield place, own, value
            return
        if "answer_start" in value and isinstance(value.get("answer"), str) and own is not None:
            yield place, own, {"answer_start": value["answer_start"], "text": value["answer"]}
        for key, element in value.items():
            if isinstance(element, list | dict):
                yield from _answers(element, f"{place}.{key}" if place else str(key), own)


def _answer(view: RowView, place: str, context: str, answer: Any, notes: Notes) -> None:
    starts, texts = answer["answer_start"], answer["text"]
    is_listed = isinstance(starts, list) and isinstance(texts, list)
    pairs = list(zip(starts, texts, strict=False)) if is_listed else [(starts, texts)]
    for index, (start, text) in enumerate(pairs):
        at = _whole(start)
        if at is None or not isinstance(text, str) or not text or (at >= 0 and context[at : at + len(text)] == text):
            continue
        stands = context.find(text)
        index_of = f"[{index}]" if is_listed else ""
        under = f"{place}." if place else ""
        there = excerpt(context[max(0, at) : max(0, at) + len(text)], 0, 40)
        if stands < 0:
            found = f"the answer {text[:40]!r} does not stand in the context; at {at} there is {there!r}."
            notes.findings.append(_finding(view, f"{under}text{index_of}", found))
        else:
            found = f"at {at} of the context stands {there!r}, not {text[:40]!r}, which begins at {stands}."
            notes.findings.append(_finding(view, f"{under}answer_start{index_of}", found))


def _finding(view: RowView, place: str, found: str) -> Finding:
    mend = "Write the place at which it stands, counted in characters from 0."
    return Finding("wrong-offset", "error", view.origin.file, view.origin.line, place, found, mend)
