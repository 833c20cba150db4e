"""Prompts: what is to be answered, for objectives whose answers the model itself writes.

    {"prompt": "What is 2 + 3?"}
    {"messages": [{"role": "user", "content": "Hi"}]}

Prompts alone are a text or a list of messages (https://huggingface.co/docs/trl/dataset_formats). Rows of any form with answers
give prompts too: all that comes before the last answer. The answers and all other columns are not read here; what grades the
model's own answers sees them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from luthier.data.formats.chat import message
from luthier.data.formats.completion import PROMPTS
from luthier.data.formats.table import (
    FurtherForm,
    Recognise,
    Recognition,
    Table,
    as_filled_text,
    as_list,
    fault,
    one,
    required,
)
from luthier.data.formats.turns import tools_of
from luthier.data.reading import Row
from luthier.data.settings import FormatName
from luthier.types import Completion, Conversation, Gives, Message, PlainText, Preference, Prompt, Record

NAME: FormatName = "prompts"
GIVES: Gives = "prompts"
COLUMNS = "prompt (or question, input, query, instruction, problem) or messages: a text, or a list of messages"

NAMES = (*PROMPTS, "problem")


def recognise(table: Table) -> Recognition | None:
    """Rows with a prompt, or with messages."""
    return _asks(table.column("prompt") or table.named(("messages",), ("a list",)))


def _recognise_named(table: Table) -> Recognition | None:
    """Rows with another column that asks."""
    return _asks(table.named(NAMES, ("text", "a list")))


BY_NAME = FurtherForm(NAME, GIVES, COLUMNS, _recognise_named)
"""Tried last: rows with answers say better what asks."""


def _asks(named: str | None) -> Recognition | None:
    if named is None:
        return None
    return Recognition(f"{named} asks", frozenset({named, "tools", "functions"}), one(to_record, prompt=named))


def to_record(row: Row, prompt: str = "prompt") -> Prompt:
    """The row's prompt."""
    asked = required(row, row.values, prompt, prompt)
    if isinstance(asked, str):
        return Prompt(as_filled_text(row, prompt, asked, "the prompt"))
    turns = as_list(row, prompt, asked, "messages")
    messages = asking([message(row, f"{prompt}[{index}]", turn) for index, turn in enumerate(turns)])
    if not messages:
        raise fault(row, prompt, "nothing is asked.", "Begin with a message of the user, or leave this row out.")
    return Prompt(Conversation(messages, tools_of(row)))


def asking(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages without those of the assistant that they end with."""
    end = len(messages)
    while end and messages[end - 1].role == "assistant":
        end -= 1
    return tuple(replace(each, learn=None, weight=1.0) for each in messages[:end])


def asked_of(record: Record) -> Prompt | None:
    """What a record with an answer asks; None where nothing comes before the answer, as in plain text."""
    match record:
        case Preference(chosen):
            return asked_of(chosen)
        case Completion(prompt):
            return Prompt(prompt) if prompt.strip() else None
        case Conversation(messages, tools):
            before = asking(messages)
            return Prompt(Conversation(before, tools)) if before else None
        case PlainText():
            return None
        case _:
            raise AssertionError("records of other forms ask nothing")


def recognise_asked(recognise_answered: Recognise, table: Table) -> Recognition | None:
    """How the prompts of rows are read that another form reads with their answers, if it does."""
    found = recognise_answered(table)
    return None if found is None else found.remade(asked_of, reason=f"{found.reason}, and what is asked is the prompt")
