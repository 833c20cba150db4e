"""Calls of tools: that they are JSON, that the tool is among those offered, that what it requires is given."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from luthier.data.checks.findings import Finding, Notes, Severity, excerpt
from luthier.data.checks.view import Layout, RowView, turns_in

KINDS: Mapping[str, Severity] = {
    "broken-call": "error",
    "unknown-tool": "error",
    "wrong-arguments": "error",
    "no-tools": "error",
}


def look(view: RowView, layout: Layout, notes: Notes) -> None:
    """Note every call of a row that could not be carried out."""
    offered = _offered(view.values)
    has_called = False
    for column, turns in turns_in(view):
        for index, turn in enumerate(turns):
            for place, value in _calls(f"{column}[{index}]", turn):
                _call(view, place, value, offered, notes)
                has_called = True
    if has_called:
        _no_offer(view, offered, notes)


def _no_offer(view: RowView, offered: Mapping[str, Any], notes: Notes) -> None:
    """Note a row that calls tools and describes none, where others that call do."""
    notes.looked("no-tools", "")
    if not offered:
        column = next((name for name in _OFFERS if name in view.values), None)
        found = "tools are called, and the row describes none."
        mend = "Describe the tools that are called, or leave this row out."
        finding = Finding("no-tools", "error", view.origin.file, view.origin.line, column, found, mend)
        notes.suspect("", finding, 0.05)


_OFFERS = ("tools", "functions")


def _offered(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The tools that a row offers, by name, each with its parameters."""
    for column in _OFFERS:
        listed = _parsed(values.get(column))
        if not isinstance(listed, list):
            continue
        functions = [tool.get("function", tool) for tool in listed if isinstance(tool, dict)]
        found = {}
        for function in functions:
            if isinstance(function, dict) and isinstance(function.get("name"), str):
                parameters = function.get("parameters")
                found[function["name"]] = parameters if isinstance(parameters, dict) else {}
        return found
    return {}


def _calls(place: str, turn: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a turn calls, with its field."""
    if turn.get("from") in ("function_call", "tool_call") or turn.get("role") in ("function_call", "tool_call"):
        key = "value" if "value" in turn else "content"
        yield f"{place}.{key}", turn.get(key)
    called = turn.get("tool_calls")
    for index, call in enumerate(called if isinstance(called, list) else ()):
        function = call.get("function", call) if isinstance(call, dict) else call
        yield (
            f"{place}.tool_calls[{index}]" + (".function" if isinstance(call, dict) and "function" in call else ""),
            function,
        )
    if turn.get("function_call") is not None:
        yield f"{place}.function_call", turn["function_call"]
    content = turn.get("content")
    for index, part in enumerate(content if isinstance(content, list) else ()):
        if isinstance(part, dict) and part.get("type") == "tool_call":
            key = "value" if "value" in part else "text"
            yield f"{place}.content[{index}].{key}", part.get(key)


def _call(view: RowView, place: str, value: Any, offered: dict[str, dict[str, Any]], notes: Notes) -> None:
    call = _parsed(value)
    if isinstance(call, list) and call:
        for each in call:
            _call(view, place, each, offered, notes)
        return
    if not isinstance(call, dict):
        found = f"the call is not a JSON object: {excerpt(str(value), 0, 50)}."
        notes.tell("broken-call", "error", view.origin, place, found, 'Write {"name": "…", "arguments": {…}}.')
        return
    is_text = isinstance(value, str)
    name = call.get("name")
    if not isinstance(name, str) or not name:
        mend = 'Write {"name": "…", "arguments": {…}}.'
        notes.tell("broken-call", "error", view.origin, place, "the call names no tool.", mend)
        return
    if offered and name not in offered:
        near = difflib.get_close_matches(name, offered, n=1)
        mend = f"Did you mean {near[0]!r}?" if near else f"Offer it, or call one of {', '.join(offered)}."
        found = f"the tool {name!r} is called, which the row does not offer."
        notes.tell("unknown-tool", "error", view.origin, place if is_text else f"{place}.name", found, mend)
        return
    _arguments(view, place if is_text else f"{place}.arguments", call, offered.get(name, {}), notes)


def _arguments(view: RowView, place: str, call: dict[str, Any], parameters: dict[str, Any], notes: Notes) -> None:
    given = call.get("arguments", call.get("parameters", {}))
    arguments = {} if given in (None, "") else _parsed(given)
    if not isinstance(arguments, dict):
        found = f"the arguments are not a JSON object: {excerpt(str(given), 0, 50)}."
        notes.tell("broken-call", "error", view.origin, place, found, 'Write an object such as {"city": "Oslo"}.')
        return
    required = parameters.get("required")
    known = parameters.get("properties")
    missing = [key for key in required if key not in arguments] if isinstance(required, list) else []
    unknown = [key for key in arguments if key not in known] if isinstance(known, dict) and known else []
    if missing:
        found = f"the call leaves out {missing[0]!r}, which the tool requires."
        notes.tell("wrong-arguments", "error", view.origin, place, found, "Give it, or leave this row out.")
    elif unknown:
        found = f"the call gives {unknown[0]!r}, which the tool does not know."
        notes.tell("wrong-arguments", "error", view.origin, place, found, f"It knows {', '.join(list(known or ()))}.")


def _parsed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None
