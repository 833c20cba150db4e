"""Pairs of answers of which one is better: the two must differ, and answer the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from luthier.data.checks.findings import Notes, Severity, excerpt
from luthier.data.checks.view import Layout, RowView, normal

KINDS: Mapping[str, Severity] = {"same-answers": "error"}

PAIRS = (
    ("chosen", "rejected"),
    ("preferred_output", "non_preferred_output"),
    ("response_j", "response_k"),
    ("output_1", "output_2"),
    ("answer_1", "answer_2"),
    ("response_a", "response_b"),
    ("choice1", "choice2"),
    ("sentence1", "sentence2"),
)


def look(view: RowView, layout: Layout, notes: Notes) -> None:
    """Note a pair whose two sides are the same."""
    for first, second in PAIRS:
        if first not in view.values or second not in view.values:
            continue
        notes.looked("same-answers", first)
        one, other = _said(view.values[first]), _said(view.values[second])
        if one.strip() and normal(one) == normal(other):
            found = f"{first} and {second} say the same: {excerpt(one, 0, 40)}."
            mend = "Give two answers of which one is better, or leave this row out."
            notes.tell("same-answers", "error", view.origin, second, found, mend)


def sides_of(values: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """The field of the better answer of a row, and the two answers, the better one first; None for rows without a pair."""
    for better, worse in _RANKED:
        if better in values and worse in values:
            return better, normal(_said(values[better])), normal(_said(values[worse]))
    return None


_RANKED = PAIRS[:3]


def _said(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
