"""ShareGPT: a list of turns, each saying who it is from and its value.

    {"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}

The form of the conversations shared on sharegpt.com and of FastChat's training data
(https://github.com/lm-sys/FastChat). Read beside it: `system`, `tools` (a list, or JSON in a string), and turns from
`function_call` and `observation`, as LLaMA-Factory writes calls of tools and what they gave back.
"""

from __future__ import annotations

import difflib
import json
from typing import Any

from luthier.data.formats.table import Recognition, Table, as_list, as_object, as_text, fault, one, required
from luthier.data.formats.turns import (
    check_order,
    note_unread_keys,
    shape,
    tool_call,
    tools_of,
    turn_column,
    weight_of,
    with_system,
)
from luthier.data.reading import Row
from luthier.data.settings import FormatName
from luthier.types import Conversation, Gives, Message

NAME: FormatName = "sharegpt"
GIVES: Gives = "text"
COLUMNS = 'conversations: [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]'

SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_call": "assistant",
}
READ = frozenset({"from", "value", "weight"})


def recognise(table: Table) -> Recognition | None:
    """Rows with a column of turns whose keys are from and value."""
    column = turn_column(table)
    if column is None or shape(table, column) != "from/value":
        return None
    return Recognition(
        f"{column} holds turns with from and value",
        frozenset({column, "system", "tools", "functions"}),
        one(to_record, column=column),
        note_unread_keys(table, column, READ),
    )


def to_record(row: Row, column: str = "conversations") -> Conversation:
    """The row's conversation. The first turn after a system text must be the human's."""
    listed = as_list(row, column, required(row, row.values, column, column), "turns")
    messages = tuple(message(row, f"{column}[{index}]", value) for index, value in enumerate(listed))
    opening = 1 if messages and messages[0].role == "system" else 0
    if len(messages) > opening and messages[opening].role == "assistant":
        found = "the conversation begins with an answer that nothing was asked for."
        mend = "Remove the turns before the first one from 'human', or leave this row out."
        raise fault(row, f"{column}[{opening}].from", found, mend)
    check_order(row, column, messages, key="from")
    return Conversation(with_system(row, column, messages), tools_of(row))


def message(row: Row, field: str, value: Any) -> Message:
    turn = as_object(row, field, value, '{"from": "human", "value": "…"}')
    speaker = as_text(row, f"{field}.from", required(row, turn, "from", f"{field}.from"))
    if speaker not in SPEAKERS:
        near = difflib.get_close_matches(speaker.lower(), SPEAKERS, n=1)
        mend = f"Did you mean {near[0]!r}?" if near else "Questions are from 'human', answers from 'gpt'."
        found = f"the turn is from {speaker!r}, expected one of {', '.join(SPEAKERS)}."
        raise fault(row, f"{field}.from", found, mend)
    role = SPEAKERS[speaker]
    text = as_text(row, f"{field}.value", required(row, turn, "value", f"{field}.value"))
    if not text.strip() and role in ("user", "assistant"):
        what = "the answer" if role == "assistant" else "the human's turn"
        raise fault(row, f"{field}.value", f"{what} is empty.", "Fill it in, or leave this row out.")
    learn, weight = weight_of(row, field, turn, role)
    calls = _calls(row, f"{field}.value", text) if speaker == "function_call" else []
    if calls:
        return Message(role, "", learn, (("tool_calls", calls),), weight)
    return Message(role, text, learn, weight=weight)


def _calls(row: Row, field: str, text: str) -> list[dict[str, Any]]:
    """The calls that a function_call turn spells in JSON; none if it is another kind of text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return []
    listed = value if isinstance(value, list) else [value]
    if not all(isinstance(call, dict) and {"name", "arguments"} <= call.keys() for call in listed):
        return []
    return [tool_call(row, field, call) for call in listed]
