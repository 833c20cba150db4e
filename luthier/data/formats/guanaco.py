"""Guanaco: a whole conversation in one string, its turns marked with ### Human: and ### Assistant:.

    {"text": "### Human: Why is the sky blue?### Assistant: It scatters blue light most."}

The form of openassistant-guanaco, on which QLoRA's Guanaco was trained (Dettmers et al. 2023,
https://arxiv.org/abs/2305.14314). The turns become messages, so the model's own chat template writes them and the answers
alone are learned; Guanaco learned the whole string, which `data.format: text` does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from luthier.data.formats.marks import marked_turns
from luthier.data.formats.table import Recognition, Table, as_filled_text, one, required
from luthier.data.formats.turns import check_order
from luthier.data.reading import Row
from luthier.data.settings import FormatName
from luthier.types import Conversation, Gives

NAME: FormatName = "guanaco"
GIVES: Gives = "text"
COLUMNS = 'text: "### Human: … ### Assistant: …"'

MARK = re.compile(r"###\s?(Human|Assistant):")


def recognise(table: Table) -> Recognition | None:
    """Rows with a column of text that begins with a mark of the human, and holds one of the assistant."""
    for column in table.usual:
        if table.kinds[column] == "text" and table.mostly(column, _is_marked):
            reason = f"{column} marks its turns with ### Human: and ### Assistant:"
            return Recognition(reason, frozenset({column}), one(to_record, column=column), _notes(table.rows, column))
    return None


def to_record(row: Row, column: str = "text") -> Conversation:
    """The conversation of the string. A last question that nothing answers is left off."""
    text = as_filled_text(row, column, required(row, row.values, column, column), "the text")
    messages = marked_turns(row, column, text, MARK)
    if any(message.role == "assistant" for message in messages):
        while messages[-1].role != "assistant":
            messages = messages[:-1]
    check_order(row, column, messages)
    return Conversation(messages)


def _is_marked(value: object) -> bool:
    return isinstance(value, str) and [match[1] for match in MARK.finditer(value)][:2] == ["Human", "Assistant"]


def _notes(rows: Sequence[Row], column: str) -> tuple[str, ...]:
    """How many rows end with a question that nothing answers."""
    speakers = ([match[1] for match in MARK.finditer(str(row.values.get(column)))] for row in rows)
    unanswered = sum("Assistant" in who and who[-1] == "Human" for who in speakers)
    return (f"{unanswered} rows end with a question that nothing answers, which is left off.",) if unanswered else ()
