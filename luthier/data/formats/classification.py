"""Classification: a text, or a pair of texts, and the class that it belongs to.

    {"text": "The parcel never came.", "label": "delivery"}
    {"sentence1": "A man sleeps.", "sentence2": "A man is awake.", "label": 2}

The columns of GLUE (Wang et al. 2018, https://arxiv.org/abs/1804.07461) and of most sets on the hub. A label is a name or
a whole number, which then is the class's name. Only an objective over classes takes such rows.
"""

from __future__ import annotations

from luthier.data.formats.table import Recognition, Table, as_filled_text, fault, one, required
from luthier.data.reading import Row, kind_of
from luthier.data.settings import FormatName
from luthier.types import Gives, Labelled

NAME: FormatName = "classification"
GIVES: Gives = "labels"
COLUMNS = "text and label (or text, text_pair and label; or other names such as sentence1, sentence2 and category)"

TEXTS = ("text", "sentence", "content")
PAIRS = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("sentence_a", "sentence_b"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
)
LABELS = ("label", "labels", "category", "class", "intent", "sentiment")


def recognise(table: Table) -> Recognition | None:
    """Rows with a label, and one text or a pair of texts that the columns' names tell."""
    label = label_column(table)
    if label is None:
        return None
    texts = text_columns(table, label)
    if texts is None:
        return None
    reads = frozenset({*texts, label})
    return Recognition(
        f"{label} is the class of {' and '.join(texts)}", reads, one(to_record, texts=texts, label=label)
    )


def label_column(table: Table) -> str | None:
    """The column of the classes; None if no column, or more than one, may be it."""
    found = table.columns(LABELS)
    if len(found) == 1 or (found and found[0] in ("label", "Label")):
        return found[0]
    return None


def text_columns(table: Table, label: str) -> tuple[str, ...] | None:
    """The column or the two columns of the text; None where the names do not tell."""
    for names in PAIRS:
        found = tuple(column for column in table.columns(names) if table.kinds[column] == "text")
        if len(found) == 2:
            return found
    named = next((column for column in table.columns(TEXTS) if table.kinds[column] == "text"), None)
    if named is not None:
        return (named,)
    others = [column for column in table.usual if column != label and table.kinds[column] == "text"]
    return (others[0],) if len(others) == 1 else None


def to_record(row: Row, texts: tuple[str, ...] = ("text",), label: str = "label") -> Labelled:
    """The row's text or texts, and its class."""
    words = ("the text",) if len(texts) == 1 else ("the first text", "the second text")
    filled = [
        as_filled_text(row, column, required(row, row.values, column, column), what)
        for column, what in zip(texts, words, strict=True)
    ]
    return Labelled(filled[0], filled[1] if len(filled) == 2 else None, _class(row, label))


def _class(row: Row, column: str) -> str:
    """The name of the row's class. Raises DataError for what names none."""
    value = required(row, row.values, column, column)
    if isinstance(value, bool | int):
        return str(value).lower()
    if not isinstance(value, str):
        found = f"expected the name or the number of a class, found {kind_of(value)}."
        raise fault(row, column, found, "Write it as a string or a whole number, or leave this row out.")
    if not value.strip():
        raise fault(row, column, "the label is empty.", "Fill it in, or leave this row out.")
    return value.strip()
