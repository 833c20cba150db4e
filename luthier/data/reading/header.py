"""Whether the first record of a table names its columns, or is a row itself: told by the records below it.

Names differ from what they stand over: a word over numbers, a short word over sentences, a word that is not among the few
values of a column of labels. A row is like the rows below it. Each column gives evidence, positive for names; the sum
decides, and where it is small the decision is doubtful. Of no evidence at all, a header is assumed: most tables have one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

_PLAIN = 2
"""From this sum on, positive or negative, a decision is not doubtful."""

_SENTENCES = 25
"""Characters that half of a column's values must have to be taken for sentences."""

_NAMES = frozenset({
    # of the things themselves
    "text", "sentence", "sentences", "content", "document", "article", "passage", "paragraph", "context", "body",
    "title", "headline", "description", "abstract", "summary", "highlights", "review", "comment", "message",
    "messages", "tweet", "post", "utterance", "query", "question", "answer", "answers", "response", "reply",
    "prompt", "completion", "instruction", "input", "output", "source", "target", "reference", "references", "ref",
    "hypothesis", "premise", "chosen", "rejected", "conversation", "conversations", "dialogue", "story", "code",
    "sql", "translation", "word", "words", "token", "tokens", "tag", "tags",
    # of what is said about them
    "label", "labels", "class", "category", "categories", "intent", "topic", "type", "kind", "sentiment", "score",
    "scores", "rating", "stars", "rank", "verdict", "polarity", "emotion", "entity", "entities", "explanation",
    "rationale", "reason",
    # of what they are known by
    "id", "idx", "index", "name", "key", "url", "link", "date", "time", "timestamp", "author", "user", "username",
    "email", "lang", "language", "locale", "model", "version", "split", "system", "role", "domain",
    "group", "task",
})  # fmt: skip
"""Words that columns are usually called by."""

_LONGEST_NAME = 60
"""Characters beyond which a cell is hardly a name."""

_NUMBER = re.compile(r"[-+]?[$€£]?(\d[\d,]*\.?\d*|\.\d+)([eE][-+]?\d+)?%?|nan|\d[\d/:.T -]*Z?", re.IGNORECASE)
"""A number, an amount, a date or a time."""


@dataclass(frozen=True)
class Judged:
    """Whether the first record names the columns, whether that is doubtful, and why."""

    is_header: bool
    is_doubtful: bool
    reason: str


@dataclass(frozen=True)
class _Evidence:
    weight: int
    reason: str


def judge(records: Sequence[Sequence[str]]) -> Judged:
    """Of the first records of a table, at least one, whether the very first names the columns."""
    first, *below = records
    evidence = [
        found
        for index, cell in enumerate(first)
        for found in _column_evidence(cell.strip(), [row[index].strip() for row in below if index < len(row)])
    ]
    if len(set(first)) < len(first):
        evidence.append(_Evidence(-1, "two of its cells are the same"))
    total = sum(found.weight for found in evidence)
    agreeing = [found for found in evidence if found.weight * (1 if total >= 0 else -1) > 0]
    agreeing.sort(key=lambda found: -abs(found.weight))
    reason = "; ".join(found.reason for found in agreeing[:2]) or "nothing tells it from the lines below"
    return Judged(is_header=total >= 0, is_doubtful=abs(total) < _PLAIN, reason=reason)


def _column_evidence(cell: str, below: Sequence[str]) -> list[_Evidence]:
    """What one column tells: its first cell against those below it."""
    filled = [value for value in below if value]
    shown = repr(cell if len(cell) <= 30 else f"{cell[:29]}…")
    if not cell:
        return []
    if _is_number(cell):
        return [_Evidence(-2 if not filled or _are_numbers(filled) else -1, f"{shown} is a number, not a name")]
    if _are_numbers(filled):
        # a sentence there is a row's text that came into the wrong column, not the name of one
        return [] if len(cell) > _LONGEST_NAME else [_Evidence(2, f"{shown} stands over numbers")]
    counts = Counter(filled)
    if len(filled) >= 4 and 2 * len(counts) <= len(filled):
        if cell in counts:
            return [_Evidence(-2, f"{shown} is among the values that repeat below it")]
        if 4 * len(counts) <= len(filled):
            return [_Evidence(1, f"{shown} is not among the values that repeat below it"), *_name_evidence(cell, shown)]
    return [*_name_evidence(cell, shown), *_likeness(cell, filled, shown)]


def _name_evidence(cell: str, shown: str) -> list[_Evidence]:
    """What the cell tells by itself."""
    words = re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", cell).lower())
    if len(words) == 1 and words[0] in _NAMES:
        return [_Evidence(2, f"{shown} is what columns are called")]
    if 1 < len(words) <= 3 and not re.search(r"[.?!,;]", cell) and (words[0] in _NAMES or words[-1] in _NAMES):
        return [_Evidence(1, f"{shown} is what columns are called")]
    return []


def _likeness(cell: str, filled: Sequence[str], shown: str) -> list[_Evidence]:
    """Whether the cell reads like the texts below it."""
    evidence = []
    length = median(map(len, filled)) if filled else 0
    if "\n" in cell:
        evidence.append(_Evidence(-2, f"{shown} has a line break in it"))
    elif len(cell) > _LONGEST_NAME:
        evidence.append(_Evidence(-1, f"{shown} is longer than names are"))
    if length >= _SENTENCES:
        if 2 * len(cell) >= length:
            evidence.append(_Evidence(-1, f"{shown} is as long as what stands below it"))
        elif len(cell) < min(map(len, filled)):
            evidence.append(_Evidence(1, f"{shown} is shorter than all that stands below it"))
    if _is_ended(cell) and 2 * sum(map(_is_ended, filled)) >= len(filled):
        evidence.append(_Evidence(-1, f"{shown} ends as a sentence does"))
    shape = re.sub(r"\d+", "0", cell)
    if "0" in shape and filled and 4 * sum(re.sub(r"\d+", "0", value) == shape for value in filled) >= 3 * len(filled):
        evidence.append(_Evidence(-2, f"{shown} differs from those below it in its number alone"))
    return evidence


def _is_ended(text: str) -> bool:
    return text.endswith((".", "?", "!", "…", "。", "？", "！", '."', '?"', '!"'))


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None


def _are_numbers(values: Sequence[str]) -> bool:
    return bool(values) and 10 * sum(map(_is_number, values)) >= 9 * len(values)
