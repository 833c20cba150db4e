"""Alpaca: an instruction, an input that may be empty, and the output to learn.

    {"instruction": "Translate to French.", "input": "Good morning.", "output": "Bonjour."}
    {"instruction": "Translate to French.", "instances": [{"input": "Good morning.", "output": "Bonjour."}]}

From Stanford Alpaca, https://github.com/tatsu-lab/stanford_alpaca. LLaMA-Factory's additions are read too: `system`, and
`history`, a list of earlier [question, answer] pairs; and self-instruct's `instances` (Wang et al. 2022,
https://arxiv.org/abs/2212.10560), each of which becomes a record. Instruction and input become one message of the user, with a
blank line between them, and the message says which part of it is the input: the sentences of Alpaca's own prompt are written
by `data.chat_template: alpaca`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from luthier.data.formats.table import (
    Recognition,
    Table,
    as_filled_text,
    as_list,
    as_object,
    as_text,
    fault,
    one,
    required,
)
from luthier.data.formats.turns import tools_of, with_system
from luthier.data.reading import Row
from luthier.data.settings import FormatName
from luthier.types import INPUT, Conversation, Gives, Message

NAME: FormatName = "alpaca"
GIVES: Gives = "text"
COLUMNS = "instruction, input (may be empty or missing) and output"


def recognise(table: Table) -> Recognition | None:
    """Rows with the columns instruction and output, or with an instruction and its instances."""
    instruction, output = table.column("instruction"), table.column("output")
    instances = table.named(("instances",), ("a list",))
    if instruction is not None and instances is not None:
        reason = f"{instances} are inputs and outputs of {instruction}"
        reads = frozenset({instruction, instances, "system", "tools", "functions"})
        return Recognition(reason, reads, lambda row: _of_instances(row, instruction, instances))
    if instruction is None or output is None:
        return None
    given = table.column("input")
    columns = [instruction, given, output] if given is not None else [instruction, output]
    reason = f"the columns {', '.join(columns[:-1])} and {output} are there"
    reads = frozenset({*columns, "system", "history", "tools", "functions"})
    return Recognition(
        reason,
        reads,
        one(to_record, instruction=instruction, given=given or "input", output=output),
    )


def to_record(row: Row, instruction: str = "instruction", given: str = "input", output: str = "output") -> Conversation:
    """The row as a conversation: system and history if there are any, the instruction with its input, the output."""
    question = _asked(row, instruction, given, row.values.get(given))
    answer = as_filled_text(row, output, required(row, row.values, output, output), "the answer")
    messages = (*_history(row), question, Message("assistant", answer))
    return Conversation(with_system(row, "history", messages), tools_of(row))


def _of_instances(row: Row, instruction: str, instances: str) -> tuple[Conversation, ...]:
    """One conversation for each instance of the instruction."""
    listed = as_list(row, instances, required(row, row.values, instances, instances), "instances")
    if not listed:
        raise fault(row, instances, "the list is empty.", "Give at least one instance, or leave this row out.")
    return tuple(_of_instance(row, instruction, f"{instances}[{i}]", part) for i, part in enumerate(listed))


def _of_instance(row: Row, instruction: str, field: str, value: Any) -> Conversation:
    instance = as_object(row, field, value, '{"input": "…", "output": "…"}')
    question = _asked(row, instruction, f"{field}.input", instance.get("input"))
    said = required(row, instance, "output", f"{field}.output")
    answer = as_filled_text(row, f"{field}.output", said, "the answer")
    messages = (question, Message("assistant", answer))
    return Conversation(with_system(row, instruction, messages), tools_of(row))


def _asked(row: Row, instruction: str, field: str, given: Any) -> Message:
    """The instruction and what is given with it, with a blank line between."""
    asked = as_text(row, instruction, required(row, row.values, instruction, instruction))
    rest = "" if given is None else as_text(row, field, given)
    question = "\n\n".join(text for text in (asked, rest) if text.strip())
    if not question:
        found = "the instruction is empty, and there is no input."
        raise fault(row, instruction, found, "Fill it in, or leave this row out.")
    with_input = asked.strip() and rest.strip()
    return Message("user", question, extra=((INPUT, rest),) if with_input else ())


def _history(row: Row) -> Iterator[Message]:
    """The earlier questions and answers."""
    value = row.values.get("history")
    if value is None or value == "":
        return
    for index, pair in enumerate(as_list(row, "history", value, "[question, answer] pairs")):
        place = f"history[{index}]"
        listed = as_list(row, place, pair, "two texts, question and answer")
        if len(listed) != 2:
            found = f"expected a question and its answer, found {len(listed)} elements."
            raise fault(row, place, found, "Write each earlier turn as [question, answer].")
        yield Message("user", as_filled_text(row, f"{place}[0]", listed[0], "the question"))
        yield Message("assistant", as_filled_text(row, f"{place}[1]", listed[1], "the answer"))
