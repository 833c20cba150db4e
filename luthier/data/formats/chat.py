"""Chat: a list of messages with a role and a content, as OpenAI's chat and fine-tuning interfaces take it.

    {"messages": [{"role": "system", "content": "…"}, {"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}

https://platform.openai.com/docs/api-reference/chat/create. The list may also stand under `conversations` or
`conversation`. Per message: `weight` (answers only; OpenAI's is 0 or 1), `name`, `tool_calls`, `tool_call_id`, `reasoning_content`.
Per row: `tools` or `functions`, `system`. A content may be a list of text parts; images and audio are refused.
"""

from __future__ import annotations

import difflib
from typing import Any

from luthier.data.formats.table import Recognition, Table, as_list, as_object, as_text, fault, one, required
from luthier.data.formats.turns import (
    check_order,
    note_unread_keys,
    shape,
    tool_call,
    tools_of,
    turn_column,
    turns_of,
    weight_of,
    with_system,
)
from luthier.data.reading import Row
from luthier.data.settings import FormatName
from luthier.types import Conversation, Gives, Message

NAME: FormatName = "chat"
GIVES: Gives = "text"
COLUMNS = 'messages: [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]'

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
KEPT = ("name", "tool_call_id", "reasoning_content")
READ = frozenset({"role", "content", "weight", "tool_calls", "function_call", *KEPT})
SUCH_AS = '{"role": "user", "content": "…"}'
REASONING_PARTS = ("reasoning", "thinking")
MEDIA = ("image", "audio", "video", "file")


def recognise(table: Table) -> Recognition | None:
    """Rows with a column of turns whose keys are role and content; `messages` is taken at its name."""
    column = turn_column(table)
    if column is None:
        return None
    found = shape(table, column)
    if found == "from/value" or (found is None and column.lower() != "messages"):
        return None
    reason = f"{column} holds turns with role and content" if found else f"there is a column {column}"
    parts = (
        part
        for turns in turns_of(table.rows, column)
        for turn in turns
        if isinstance(turn.get("content"), list)
        for part in turn["content"]
    )
    notes = note_unread_keys(table, column, READ)
    if any(isinstance(part, dict) and part.get("type") in REASONING_PARTS for part in parts):
        notes += ("Reasoning parts of an answer are written before it as <think>…</think>.",)
    reads = frozenset({column, "tools", "functions", "system"})
    return Recognition(reason, reads, one(to_record, column=column), notes)


def to_record(row: Row, column: str = "messages") -> Conversation:
    """The row's conversation."""
    messages = messages_of(row, column)
    check_order(row, column, messages)
    return Conversation(with_system(row, column, messages), tools_of(row))


def messages_of(row: Row, column: str) -> tuple[Message, ...]:
    """The messages listed in a column, in any order of roles."""
    listed = as_list(row, column, required(row, row.values, column, column), "messages")
    return tuple(message(row, f"{column}[{index}]", value) for index, value in enumerate(listed))


def message(row: Row, field: str, value: Any) -> Message:
    turn = as_object(row, field, value, SUCH_AS)
    role = _role(row, f"{field}.role", required(row, turn, "role", f"{field}.role"))
    content, calls = _content(row, field, turn, role)
    if not content.strip() and not calls and role in ("user", "assistant"):
        what = "the answer" if role == "assistant" else "the user's message"
        raise fault(row, f"{field}.content", f"{what} is empty.", "Fill it in, or leave this row out.")
    extra: dict[str, Any] = {"tool_calls": calls} if calls else {}
    for key in KEPT:
        if turn.get(key) is not None:
            extra[key] = as_text(row, f"{field}.{key}", turn[key])
    learn, weight = weight_of(row, field, turn, role)
    return Message(role, content, learn, tuple(extra.items()), weight)


def _role(row: Row, field: str, value: Any) -> str:
    role = as_text(row, field, value)
    if role not in ROLES:
        near = difflib.get_close_matches(role.lower(), ROLES, n=1)
        mend = f"Did you mean {near[0]!r}?" if near else "Answers have the role 'assistant', questions 'user'."
        raise fault(row, field, f"the role is {role!r}, expected one of {', '.join(ROLES)}.", mend)
    return ROLES[role]


def _content(row: Row, field: str, turn: dict[str, Any], role: str) -> tuple[str, list[dict[str, Any]]]:
    """The text of a message and the tools that it calls."""
    content = turn.get("content")
    calls = _calls(row, field, turn)
    if content is None and role == "assistant" and calls:
        text = ""
    elif isinstance(content, list):
        text, called = _joined(row, f"{field}.content", content, role)
        calls = calls + called
    else:
        text = as_text(row, f"{field}.content", required(row, turn, "content", f"{field}.content"))
    if calls and role != "assistant":
        found = f"a message of the {role} calls tools; only answers do."
        raise fault(row, f"{field}.tool_calls", found, "Give the message the role 'assistant', or remove the calls.")
    return text, calls


def _calls(row: Row, field: str, turn: dict[str, Any]) -> list[dict[str, Any]]:
    """`tool_calls`, or its forerunner `function_call`."""
    if turn.get("tool_calls"):
        listed = as_list(row, f"{field}.tool_calls", turn["tool_calls"], "tool calls")
        return [tool_call(row, f"{field}.tool_calls[{index}]", call) for index, call in enumerate(listed)]
    if turn.get("function_call"):
        return [tool_call(row, f"{field}.function_call", turn["function_call"])]
    return []


def _joined(row: Row, field: str, parts: list[Any], role: str) -> tuple[str, list[dict[str, Any]]]:
    """A content given in parts: text parts one a line, reasoning before them in <think> marks, and tool calls."""
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for index, part in enumerate(parts):
        place = f"{field}[{index}]"
        if isinstance(part, str):
            texts.append(part)
            continue
        kind, value = _part(row, place, part)
        if kind == "tool_call":
            calls.append(tool_call(row, place, value))
        elif kind in REASONING_PARTS and role == "assistant":
            thoughts.append(as_text(row, place, value))
        else:
            texts.append(as_text(row, place, value))
    thought = "<think>\n" + "\n".join(thoughts) + "\n</think>\n\n" if thoughts else ""
    return thought + "\n".join(texts), calls


def _part(row: Row, field: str, part: Any) -> tuple[str, Any]:
    """The type of a content part and what it holds."""
    typed = as_object(row, field, part, '{"type": "text", "text": "…"}')
    kind = as_text(row, f"{field}.type", required(row, typed, "type", f"{field}.type"))
    if any(medium in kind for medium in MEDIA):
        found = f"a part is of type {kind!r}; Luthier learns from text alone."
        raise fault(row, f"{field}.type", found, "Remove images, audio and files from the data, or leave this row out.")
    held = next((typed[key] for key in ("text", "value", kind) if typed.get(key) is not None), None)
    if held is None:
        raise fault(
            row,
            field,
            f"a part of type {kind!r} holds no 'text' and no 'value'.",
            'Write it as {"type": "text", "text": "…"}.',
        )
    return kind, held
