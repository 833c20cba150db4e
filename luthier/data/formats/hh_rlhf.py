"""hh-rlhf: two transcripts in one string each, the same up to an answer of the assistant; the first was preferred.

    {"chosen": "\\n\\nHuman: Hi\\n\\nAssistant: Hello!", "rejected": "\\n\\nHuman: Hi\\n\\nAssistant: What?"}

The form of Anthropic's sets of helpful and harmless answers (Bai et al. 2022, https://arxiv.org/abs/2204.05862). The turns
that both share are the prompt, in which nothing is learned; compared is what follows. That may be several turns, where the
two part before the last answer.
"""

from __future__ import annotations

import re

from luthier.data.formats.marks import marked_turns
from luthier.data.formats.table import Recognition, Table, as_filled_text, fault, one, required
from luthier.data.formats.turns import check_order, unlearned
from luthier.data.reading import Row
from luthier.data.settings import FormatName
from luthier.types import Conversation, Gives, Message, Preference

NAME: FormatName = "hh-rlhf"
GIVES: Gives = "preferences"
COLUMNS = 'chosen and rejected: "\\n\\nHuman: …\\n\\nAssistant: …"'

MARK = re.compile(r"(?:\A|\n\n)\s*(Human|Assistant):")


def recognise(table: Table) -> Recognition | None:
    """Rows whose chosen and rejected are transcripts with marks."""
    chosen, rejected = table.named(("chosen",)), table.named(("rejected",))
    if chosen is None or rejected is None:
        return None
    if not (table.mostly(chosen, _is_transcript) and table.mostly(rejected, _is_transcript)):
        return None
    reason = f"{chosen} and {rejected} are transcripts marked with Human: and Assistant:"
    return Recognition(reason, frozenset({chosen, rejected}), one(to_record, chosen=chosen, rejected=rejected))


def to_record(row: Row, chosen: str = "chosen", rejected: str = "rejected") -> Preference:
    """The two conversations; answers within the turns that they share are not learned."""
    better, worse = _transcript(row, chosen), _transcript(row, rejected)
    if better == worse:
        found = f"{chosen} and {rejected} are the same, so there is nothing to prefer."
        raise fault(row, rejected, found, "Leave this row out.")
    shared = 0
    while shared < min(len(better), len(worse)) and better[shared] == worse[shared]:
        shared += 1
    for field, turns in ((chosen, better), (rejected, worse)):
        if shared == 0 or shared >= len(turns) or turns[shared].role != "assistant":
            found = f"after the turns that both share, {field} does not go on with an answer."
            raise fault(row, field, found, "The two must be the same up to an answer of the assistant.")
    asked = unlearned(better[:shared])
    return Preference(Conversation((*asked, *better[shared:])), Conversation((*asked, *worse[shared:])))


def _transcript(row: Row, column: str) -> tuple[Message, ...]:
    text = as_filled_text(row, column, required(row, row.values, column, column), "the transcript")
    turns = marked_turns(row, column, text, MARK)
    check_order(row, column, turns)
    return turns


def _is_transcript(value: object) -> bool:
    return isinstance(value, str) and [match[1] for match in MARK.finditer(value)][:1] == ["Human"]
