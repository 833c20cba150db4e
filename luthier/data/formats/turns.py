"""What the forms with turns share: finding them, their order, the tools offered and called, a system text beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from luthier.data.formats.table import Table, as_list, as_object, as_text, as_weight, fault, required
from luthier.data.reading import Row
from luthier.types import Message

TURN_COLUMNS = ("messages", "conversations", "conversation")

TOOL_CALL = '{"type": "function", "function": {"name": "…", "arguments": {…}}}'


# ── finding the turns ───────────────────────────────────────────────────────────────────────────────────────────────


def turn_column(table: Table) -> str | None:
    """The usual column that is named as turns are."""
    return next(iter(table.columns(TURN_COLUMNS)), None)


def turns_of(rows: Sequence[Row], column: str) -> Iterator[list[dict[str, Any]]]:
    """Each row's turns, as far as they are objects in a list or in its JSON; rows without any are passed over."""
    for row in rows:
        value = row.values.get(column)
        if isinstance(value, str) and value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                continue  # told as a fault when the row becomes a record
        if isinstance(value, list) and (turns := [turn for turn in value if isinstance(turn, dict)]):
            yield turns


def shape(table: Table, column: str) -> Literal["role/content", "from/value"] | None:
    """Which keys most turns of the first rows use; None if they use neither."""
    turns = [turn for row_turns in turns_of(table.first, column) for turn in row_turns]
    with_role = sum("role" in turn or "content" in turn for turn in turns)
    with_from = sum("from" in turn or "value" in turn for turn in turns)
    if with_role == with_from == 0:
        return None
    return "from/value" if with_from > with_role else "role/content"


def note_unread_keys(table: Table, column: str, read: frozenset[str]) -> tuple[str, ...]:
    """A note on keys of turns that are not read, in any row; none if there are none."""
    turns = (turn for row_turns in turns_of(table.rows, column) for turn in row_turns)
    unread = dict.fromkeys(
        key for turn in turns for key, value in turn.items() if key not in read and value is not None
    )
    return (f"Ignored keys of {column}: {', '.join(unread)}.",) if unread else ()


# ── their order ─────────────────────────────────────────────────────────────────────────────────────────────────────


def check_order(row: Row, field: str, messages: Sequence[Message], key: str = "role") -> None:
    """Passes if a conversation can be learned from: one system message at most, first; an answer, and it is last."""
    if not messages:
        raise fault(row, field, "the list is empty.", "Give at least a message of the user and an answer.")
    for index, message in enumerate(messages):
        if index > 0 and message.role == "system":
            found = "a system message may only stand first."
            mend = "Move it to the start, or join it with the first one."
            raise fault(row, f"{field}[{index}].{key}", found, mend)
    if not any(message.role == "assistant" for message in messages):
        raise fault(
            row,
            field,
            "there is no answer (no message of the assistant), so nothing to learn.",
            "Add the answer, or leave this row out.",
        )
    if messages[-1].role != "assistant":
        last = len(messages) - 1
        found = f"the conversation ends with a message of the {messages[-1].role}, which nothing answers."
        mend = "End it with the assistant's answer: add one, or remove what comes after the last answer."
        raise fault(row, f"{field}[{last}].{key}", found, mend)


def weight_of(row: Row, field: str, turn: dict[str, Any], role: str) -> tuple[bool | None, float]:
    """What a turn's `weight` says: whether it is learned (0: it is not; nothing leaves it open), and how much it counts then."""
    weight = turn.get("weight")
    if weight is None:
        return None, 1.0
    if role != "assistant":
        found = f"a weight stands on a message of the {role}; only answers have one."
        raise fault(row, f"{field}.weight", found, "Remove the weight there.")
    number = as_weight(row, f"{field}.weight", weight)
    return number > 0, number or 1.0


def unlearned(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages with none of their answers learned: what comes before the answers that are."""
    return tuple(replace(message, learn=False) if message.role == "assistant" else message for message in messages)


# ── what stands beside them ─────────────────────────────────────────────────────────────────────────────────────────


def with_system(row: Row, field: str, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages, with the row's `system` column (if it has text) as the first."""
    value = row.values.get("system")
    if value is None or not (text := as_text(row, "system", value)).strip():
        return messages
    if messages and messages[0].role == "system":
        if messages[0].content == text:
            return messages
        found = f"there is a system text here and another one in {field}[0]."
        raise fault(row, "system", found, "Keep one of them.")
    return (Message("system", text), *messages)


def tools_of(row: Row) -> tuple[dict[str, Any], ...]:
    """The functions offered to the model, from `tools` or else `functions`, in OpenAI form."""
    for column in ("tools", "functions"):
        value = row.values.get(column)
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        listed = as_list(row, column, value, "function schemas")
        if listed:
            return tuple(_tool(row, f"{column}[{index}]", tool) for index, tool in enumerate(listed))
    return ()


def _tool(row: Row, field: str, value: Any) -> dict[str, Any]:
    such_as = '{"type": "function", "function": {"name": "…", "description": "…", "parameters": {…}}}'
    tool = as_object(row, field, value, such_as)
    if "function" not in tool:
        tool = {"type": "function", "function": tool}
    function = as_object(row, f"{field}.function", tool["function"], such_as)
    as_text(row, f"{field}.function.name", required(row, function, "name", f"{field}.function.name"))
    return tool


def tool_call(row: Row, field: str, value: Any) -> dict[str, Any]:
    """A call in the form that chat templates take: its arguments an object, also where they come as JSON in a string."""
    call = as_object(row, field, _parsed(value), TOOL_CALL)
    place = f"{field}.function" if "function" in call else field
    function = as_object(row, place, call.get("function", call), TOOL_CALL)
    name = as_text(row, f"{place}.name", required(row, function, "name", f"{place}.name"))
    arguments = _parsed(function.get("arguments"))
    if arguments is None or arguments == "":
        arguments = {}
    arguments = as_object(row, f"{place}.arguments", arguments, '{"city": "Oslo"}, or the same as JSON in a string')
    identity = {"id": call["id"]} if call.get("id") is not None else {}
    return {**identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def _parsed(value: Any) -> Any:
    """What JSON in a string says; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
