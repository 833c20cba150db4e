"""Who speaks when: roles out of order, unknown, or spelled otherwise; a conversation that ends with a question.

What the order is, is learned from the first conversations: calls of tools and several answers in a row are usual in some sets.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.data.checks.findings import Finding, Notes, Severity, excerpt
from luthier.data.checks.view import RowView, normal, turns_in

KINDS: Mapping[str, Severity] = {
    "role-order": "error",
    "unknown-role": "error",
    "empty-turn": "error",
    "echoed-turn": "error",
}

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_call": "call",
    "tool_call": "call",
}
_FLAT = re.compile(r"(?:^|\n\n)(Human|Assistant): ?|(?:^|\n)### (Human|Assistant|User): ?")


@dataclass(frozen=True)
class Order:
    """The roles that are used, by column, and which role may follow which (of ^ and $, the beginning and the end)."""

    roles: Mapping[str, frozenset[str]]
    follows: Mapping[str, Counter[tuple[str, str]]]
    rows: Mapping[str, int]


def learn(views: Sequence[RowView]) -> Order:
    """The order in the first conversations."""
    roles: dict[str, Counter[str]] = {}
    follows: dict[str, Counter[tuple[str, str]]] = {}
    rows: Counter[str] = Counter()
    for view in views:
        for column, spoken in _conversations(view):
            rows[column] += 1
            roles.setdefault(column, Counter()).update({role for _, role in spoken})
            steps = {step for step, _ in _steps(_known(spoken))}
            follows.setdefault(column, Counter()).update(steps)
    known = {
        column: frozenset(role for role, count in found.items() if count >= 0.02 * rows[column] and count > 2)
        for column, found in roles.items()
    }
    return Order(known, follows, rows)


def _conversations(view: RowView) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Each conversation of a row: its column, and for each turn its field and its role as written."""
    for column, turns in turns_in(view):
        key = "role" if sum("role" in turn for turn in turns) * 2 >= len(turns) else "from"
        spoken = [(f"{column}[{index}].{key}", turn.get(key)) for index, turn in enumerate(turns)]
        yield column, [(place, role) for place, role in spoken if isinstance(role, str)]
    for cell in view.cells:
        if ": " in cell.text and len(marks := [m[1] or m[2] for m in _FLAT.finditer(cell.text)]) > 1:
            yield cell.peer, [(cell.field, role.lower()) for role in marks]


def _known(spoken: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(place, ROLES.get(role.strip().lower(), role)) for place, role in spoken]


def _steps(spoken: list[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], str]]:
    """Each pair of roles that follow each other, with the field of the second."""
    if not spoken:
        return
    names = ["^", *(role for _, role in spoken), "$"]
    places = [place for place, _ in spoken]
    for index, step in enumerate(itertools.pairwise(names)):
        yield step, places[min(index, len(places) - 1)]


def look(view: RowView, order: Order, notes: Notes) -> None:
    """Note roles that are not known and roles out of order."""
    for column, spoken in _conversations(view):
        known = order.roles.get(column, frozenset())
        for place, role in spoken:
            _role(view, column, place, role, known, notes)
        _order(view, column, _known(spoken), order, notes)
        _empty(view, column, notes)
        _echoed(view, column, notes)


def _role(view: RowView, column: str, place: str, role: str, known: frozenset[str], notes: Notes) -> None:
    notes.looked("unknown-role", column)
    if role in known or (not known and role.strip().lower() in ROLES):
        return
    meant = next((name for name in known if name == role.strip().lower()), None)
    near = [meant] if meant else difflib.get_close_matches(role.lower(), known or ROLES, n=1)
    mend = f"Write {near[0]!r}." if near else f"Write one of {', '.join(sorted(known or ROLES))}."
    if role in ROLES and ROLES[role] in ("system", "tool", "call"):
        return  # a rare role, rightly spelled, is the order's concern
    found = f"the role is {role!r}, where others are {', '.join(sorted(known))}." if known else f"the role is {role!r}."
    origin = view.origin
    finding = Finding("unknown-role", "error", origin.file, origin.line, place, found, mend, near[0] if near else None)
    notes.suspect(column, finding, 0.05)


def _order(view: RowView, column: str, spoken: list[tuple[str, str]], order: Order, notes: Notes) -> None:
    notes.looked("role-order", column)
    seen, rows = order.follows.get(column, Counter[tuple[str, str]]()), order.rows.get(column, 0)
    for (before, after), place in _steps(spoken):
        if before not in _SAID or after not in _SAID or (before, after) in _ALWAYS:
            continue
        is_usual = seen[before, after] > max(2, 0.03 * rows)
        if is_usual and rows >= 10:
            continue
        found = f"{_SAID[before][0]}{_SAID[after][1]}."
        mend = "Put the turns in their order, add the one that is missing, or leave this row out."
        notes.suspect(column, _finding(view, "role-order", place, found, mend), 0.05)
        return


_SAID = {
    "^": ("the conversation begins", ""),
    "$": ("", ", and there the conversation ends"),
    "system": ("after a system text", " a system text"),
    "user": ("after the user's turn", " comes a turn of the user"),
    "assistant": ("after an answer", " comes an answer"),
    "tool": ("after what a tool gave", " comes what a tool gave"),
    "call": ("after a call of a tool", " comes a call of a tool"),
}
_ALWAYS = {
    ("^", "user"), ("^", "system"), ("system", "user"), ("user", "assistant"), ("assistant", "user"), ("assistant", "$"),
    ("user", "call"), ("call", "tool"), ("tool", "assistant"), ("assistant", "tool"), ("tool", "call"), ("tool", "tool"),
}  # fmt: skip


def _empty(view: RowView, column: str, notes: Notes) -> None:
    value: Any = view.values.get(column)
    for index, turn in enumerate(value if isinstance(value, list) else ()):
        if not isinstance(turn, dict) or turn.get("tool_calls") or turn.get("function_call"):
            continue
        for key in ("content", "value"):
            if isinstance(turn.get(key), str) and not turn[key].strip():
                found, mend = "the turn is empty.", "Fill it in, or leave this row out."
                notes.looked("empty-turn", column)
                notes.suspect(column, _finding(view, "empty-turn", f"{column}[{index}].{key}", found, mend), 1.0)


def _echoed(view: RowView, column: str, notes: Notes) -> None:
    """Note an answer that says what the user said right before it; a greeting is given back rightly."""
    notes.looked("echoed-turn", column)
    value: Any = view.values.get(column)
    turns = [turn for turn in value if isinstance(turn, dict)] if isinstance(value, list) else []
    for index, (before, turn) in enumerate(itertools.pairwise(turns), start=1):
        roles = [ROLES.get(str(each.get("role", each.get("from"))).lower()) for each in (before, turn)]
        key = "content" if "content" in turn else "value"
        said, answer = before.get(key), turn.get(key)
        if roles != ["user", "assistant"] or not isinstance(said, str) or not isinstance(answer, str):
            continue
        if len(answer) >= _SHORTEST_ECHO and normal(said) == normal(answer):
            found = f"the answer is what the user said: {excerpt(answer, 0, 40)}."
            finding = _finding(view, "echoed-turn", f"{column}[{index}].{key}", found, "Write the answer.")
            notes.suspect(column, finding, 0.02)


_SHORTEST_ECHO = 12


def _finding(view: RowView, kind: str, place: str, found: str, mend: str) -> Finding:
    return Finding(kind, KINDS[kind], view.origin.file, view.origin.line, place, found, mend)
