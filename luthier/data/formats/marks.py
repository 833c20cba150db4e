"""What the forms share that write a whole conversation in one string, with a mark before each turn."""

from __future__ import annotations

import re

from luthier.data.formats.table import fault
from luthier.data.reading import Row
from luthier.types import Message

SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def marked_turns(row: Row, field: str, text: str, mark: re.Pattern[str]) -> tuple[Message, ...]:
    """The turns of a string, without the space around them; what stands before the first mark is a system text.

    mark: its first group is who speaks.
    """
    before, *parts = mark.split(text)
    turns = [Message(SPEAKERS[who], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True)]
    for number, turn in enumerate(turns, start=1):
        if not turn.content:
            what = "the answer" if turn.role == "assistant" else "the human's turn"
            raise fault(row, field, f"{what} is empty: turn {number}.", "Fill it in, or leave this row out.")
    return (Message("system", before.strip()), *turns) if before.strip() else tuple(turns)
