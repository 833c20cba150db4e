"""Data to text: a record of facts, and a sentence that says them.

    {"mr": "name[The Eagle], food[French]", "ref": "The Eagle serves French food."}

The form of the E2E set (Novikova et al. 2017, https://arxiv.org/abs/1706.09254): a meaning representation and what a person
wrote for it. The same facts stand in several rows with other words; they are held out together.
"""

from __future__ import annotations

from luthier.data.formats.table import Recognition, Table, as_filled_text, one, required
from luthier.data.reading import Row
from luthier.data.settings import FormatName
from luthier.types import Completion, Gives

NAME: FormatName = "data-to-text"
GIVES: Gives = "text"
COLUMNS = "mr and ref (or meaning_representation and human_reference)"

PAIRS = (("mr", "ref"), ("meaning_representation", "human_reference"))


def recognise(table: Table) -> Recognition | None:
    """Rows with facts and their sentence by their names."""
    for names in PAIRS:
        found = [column for column in table.columns(names) if table.kinds[column] == "text"]
        if len(found) == 2:
            facts, sentence = found
            make = one(to_record, facts=facts, sentence=sentence)
            return Recognition(f"{sentence} says what is in {facts}", frozenset(found), make)
    return None


def to_record(row: Row, facts: str = "mr", sentence: str = "ref") -> Completion:
    """The row's facts with a line break, and its sentence."""
    given = as_filled_text(row, facts, required(row, row.values, facts, facts), "the list of facts")
    said = as_filled_text(row, sentence, required(row, row.values, sentence, sentence), "the sentence")
    return Completion(f"{given.strip()}\n", said.strip())
