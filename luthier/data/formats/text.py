"""Plain text, learned as a whole: pre-training text, or rows already put in the form that the model should see.

    {"text": "Once upon a time…"}

The column that `datasets` and most pre-training sets (C4, The Pile) use.
"""

from __future__ import annotations

from luthier.data.formats.completion import ANSWERS, PROMPTS
from luthier.data.formats.table import Recognition, Table, as_filled_text, one, required
from luthier.data.reading import Row
from luthier.data.settings import FormatName
from luthier.types import Gives, PlainText

NAME: FormatName = "text"
GIVES: Gives = "text"
COLUMNS = "text (or content, or one column of text alone)"

TEXTS = ("text", "content")


def recognise(table: Table) -> Recognition | None:
    """Rows with a column text or content, or whose only text is one column beside numbers."""
    named = next((column for column in table.columns(TEXTS) if table.kinds[column] == "text"), None)
    if named is not None:
        return Recognition(f"there is a column {named}", frozenset({named}), one(to_record, column=named))
    texts = [column for column in table.usual if table.kinds[column] == "text"]
    holds_structure = any(table.kinds[column] not in ("text", "a number") for column in table.usual)
    if len(texts) != 1 or holds_structure or texts[0].lower() in (*PROMPTS, *ANSWERS):
        return None
    only = texts[0]
    return Recognition(f"{only} is the only column of text", frozenset({only}), one(to_record, column=only))


def to_record(row: Row, column: str = "text") -> PlainText:
    """The row's text."""
    return PlainText(as_filled_text(row, column, required(row, row.values, column, column), "the text"))
