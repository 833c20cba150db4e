"""Classification: a text, or a pair of texts, and the class that it belongs to.

    {"text": "The parcel never came.", "label": "delivery"}
    {"sentence1": "A man sleeps.", "sentence2": "A man is awake.", "label": 2}

The columns of GLUE (Wang et al. 2018, https://arxiv.org/abs/1804.07461) and of most sets on the hub. A label is a name or
a whole number, which then is the class's name. Without a header, the column of few and short values is the label. A word
beside two sentences, as in WiC (Pilehvar and Camacho-Collados 2019, https://arxiv.org/abs/1808.09121), stands before the
first. Only an objective over classes takes such rows.
"""

from __future__ import annotations

from collections import defaultdict

from luthier.data.formats import rationale
from luthier.data.formats.table import Recognition, Table, as_filled_text, as_joined_text, fault, one, required
from luthier.data.reading import Row, kind_of
from luthier.data.settings import FormatName
from luthier.types import Gives, Labelled

NAME: FormatName = "classification"
GIVES: Gives = "labels"
COLUMNS = "text and label (or text, text_pair and label; or other names such as sentence1, sentence2 and category)"

TEXTS = ("text", "sentence", "content", "utterance", "review", "tweet", "comment", "message")
PAIRS = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("sentence_a", "sentence_b"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("question", "contexts"),
    ("title", "description"),
)
LABELS = (
    "label",
    "labels",
    "category",
    "class",
    "intent",
    "sentiment",
    "gold_label",
    "entailment_judgment",
    "final_decision",
    "class index",
)
MOST_CLASSES = 50
"""Without a header, a column of more values than this is no label."""


def recognise(table: Table) -> Recognition | None:
    """Rows with a label, and one text or a pair of texts that the columns' names tell, or their content without names."""
    label = numbered_label(table) if table.is_headerless else label_column(table)
    if label is None:
        return None
    texts = _numbered_texts(table, label) if table.is_headerless else text_columns(table, label)
    if texts is None:
        return None
    word = table.named(("word",)) if len(texts) == 2 else None
    reads = frozenset({*texts, label, *([word] if word else [])})
    few = " (few and short values)" if table.is_headerless else ""
    reason = f"{label}{few} is the class of {' and '.join(texts)}"
    notes = _notes(table, label, word)
    return Recognition(reason, reads, one(to_record, texts=texts, label=label, word=word), notes)


def to_record(row: Row, texts: tuple[str, ...] = ("text",), label: str = "label", word: str | None = None) -> Labelled:
    """The row's text or texts, and its class. word: a column whose word stands before the first text."""
    filled = texts_of(row, texts)
    if word is not None:
        said = as_filled_text(row, word, required(row, row.values, word, word), "the word")
        filled[0] = f"{said}: {filled[0]}"
    return Labelled(filled[0], filled[1] if len(filled) == 2 else None, _class(row, label))


def texts_of(row: Row, texts: tuple[str, ...]) -> list[str]:
    """The row's text, or both of its pair."""
    words = ("the text",) if len(texts) == 1 else ("the first text", "the second text")
    return [
        as_joined_text(row, column, required(row, row.values, column, column), what)
        for column, what in zip(texts, words, strict=True)
    ]


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


# ── which columns ───────────────────────────────────────────────────────────────────────────────────────────────────


def label_column(table: Table) -> str | None:
    """The column of the classes; None if no column, or more than one, may be it."""
    found = [column for column in table.columns(LABELS) if table.kinds[column] in ("text", "a number", "true or false")]
    if not found:
        return table.named(("answer",), ("true or false",))
    if table.mostly(found[0], lambda value: isinstance(value, float) and not value.is_integer()):
        return None  # scores
    if len(found) == 1 or found[0].lower() == "label":
        return found[0]
    return _finest(table, found)


def _finest(table: Table, columns: list[str]) -> str | None:
    """The one of several columns of classes that the others only put into groups."""
    for fine in columns:
        others = [column for column in columns if column != fine]
        if others and all(_groups(table, fine, coarse) and not _groups(table, coarse, fine) for coarse in others):
            return fine
    return None


def _groups(table: Table, fine: str, coarse: str) -> bool:
    """Whether all rows that have the same value in one column have the same in the other."""
    seen: dict[str, set[str]] = defaultdict(set)
    for row in table.rows:
        seen[str(row.values.get(fine))].add(str(row.values.get(coarse)))
    return all(len(groups) == 1 for groups in seen.values())


def text_columns(table: Table, label: str | None) -> tuple[str, ...] | None:
    """The column or the two columns of the text; None where the names do not tell."""
    for names in PAIRS:
        found = tuple(column for name in names if (column := table.texts((name,))) is not None)
        if len(found) == 2:
            return found
    named = table.named(TEXTS)
    if named is not None:
        return (named,)
    others = [column for column in table.usual if column != label and table.kinds[column] == "text"]
    return (others[0],) if len(others) == 1 else None


def numbered_label(table: Table) -> str | None:
    """Of columns without names, the only one that has few and short values, each several times."""
    found = [column for column in table.usual if _has_few_values(table, column)]
    return found[0] if len(found) == 1 else None


def _has_few_values(table: Table, column: str) -> bool:
    values = [str(row.values.get(column, "")) for row in table.rows]
    different = set(values)
    is_short = all(len(value) <= 40 and len(value.split()) <= 4 for value in different)
    return is_short and len(different) <= min(MOST_CLASSES, max(1, len(values) // 2))


def _numbered_texts(table: Table, label: str) -> tuple[str, ...] | None:
    """The columns beside the label, two at most; a rationale would give the answer away."""
    reasoned = rationale.columns_of(table)
    if reasoned is not None and label == reasoned[1]:
        return (reasoned[0],)
    others = tuple(column for column in table.usual if column != label)
    return others if len(others) in (1, 2) and all(table.kinds[column] == "text" for column in others) else None


def _notes(table: Table, label: str, word: str | None) -> tuple[str, ...]:
    others = [column for column in table.columns(LABELS) if column != label]
    notes: tuple[str, ...] = () if word is None else (f"What {word} has stands before the first text.",)
    if others and label.lower() != "label" and not table.is_headerless:
        notes += (
            f'{", ".join(others)} may be the class too; data.template chooses: {{text: …, label: "{{{others[0]}}}"}}.',
        )
    return notes
