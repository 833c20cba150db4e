"""Similar: a text, another that means the same or answers it, and texts that do not.

    {"anchor": "How do I reset my password?", "positive": "I forgot my password.", "negative": "Where is my parcel?"}

The form of sets for embeddings (https://sbert.net/docs/sentence_transformer/dataset_overview.html): anchor, positive and
negative; queries with their documents; `pos` and `neg` as lists, of which every positive becomes a record with all
negatives.
"""

from __future__ import annotations

from luthier.data.formats.table import Recognition, Table, as_filled_text, as_list, fault, required
from luthier.data.reading import Row
from luthier.data.settings import FormatName
from luthier.types import Gives, Similar

NAME: FormatName = "similar"
GIVES: Gives = "similar"
COLUMNS = "anchor and positive, with negative if there is one (or query and document; lists as pos and neg)"

ANCHORS = ("anchor", "query")
POSITIVES = ("positive", "positives", "pos", "document", "passage", "positive_passage")
NEGATIVES = ("negative", "negatives", "neg", "hard_negatives")


def recognise(table: Table) -> Recognition | None:
    """Rows with an anchor or a query, and what is like it."""
    anchor = table.named(ANCHORS)
    positive = table.named(POSITIVES, ("text", "a list"))
    if anchor is None or positive is None:
        return None
    numbered = [column for column in table.usual if column.lower().startswith("negative_")]
    negatives = tuple(dict.fromkeys((*table.columns(NEGATIVES), *numbered)))
    against = f", and not {', '.join(negatives)}" if negatives else ""
    reads = frozenset({anchor, positive, *negatives})
    return Recognition(
        f"{positive} is like {anchor}{against}", reads, lambda row: to_records(row, anchor, positive, negatives)
    )


def to_records(
    row: Row, anchor: str = "anchor", positive: str = "positive", negatives: tuple[str, ...] = ()
) -> tuple[Similar, ...]:
    """One record for each positive, all with the row's negatives."""
    text = as_filled_text(row, anchor, required(row, row.values, anchor, anchor), "the anchor")
    likes = _texts(row, positive, required(row, row.values, positive, positive))
    if not likes:
        raise fault(row, positive, "the list is empty.", "Give at least one text, or leave this row out.")
    unlikes: list[str] = []
    for column in negatives:
        if row.values.get(column) is not None:
            unlikes += _texts(row, column, row.values[column])
    both = next((like for like in likes if like in unlikes), None)
    if both is not None:
        found = f"{both[:60]!r} is both like the anchor and unlike it."
        raise fault(row, positive, found, "Take it out of one of them, or leave this row out.")
    return tuple(Similar(text, like, tuple(unlikes)) for like in likes)


def _texts(row: Row, column: str, value: object) -> list[str]:
    """A text, or the texts of a list."""
    if isinstance(value, str):
        return [as_filled_text(row, column, value, "the text")]
    listed = as_list(row, column, value, "texts")
    return [as_filled_text(row, f"{column}[{index}]", part, "the text") for index, part in enumerate(listed)]
