"""Summary: a long text and a short one that says what is in it.

    {"document": "The council met on Monday …", "summary": "Council delays bridge."}
    {"source": ["We study …", "We show …"], "target": ["Bridges, studied.", "A study of bridges."]}

The columns of CNN/DailyMail, XSum and SAMSum, and of SciTLDR (Cachola et al. 2020, https://arxiv.org/abs/2004.15011), whose
sources are lists of sentences and whose targets are several summaries of one paper: the first is learned, and answers are
measured against the nearest of all.
"""

from __future__ import annotations

from luthier.data.formats.table import Recognition, Table, as_filled_text, as_joined_text, as_list, fault, one, required
from luthier.data.reading import Row
from luthier.data.settings import FormatName
from luthier.types import Completion, Gives, answered

NAME: FormatName = "summary"
GIVES: Gives = "text"
COLUMNS = "document and summary (or article and highlights; source and target as lists of sentences and of summaries)"

LONG = ("document", "article", "dialogue", "text", "content")
SHORT = ("summary", "summaries", "highlights", "tldr")


def recognise(table: Table) -> Recognition | None:
    """Rows with a text and its summary by their names, or with a source in sentences and its targets."""
    found = columns_of(table)
    if found is None:
        return None
    source, summary = found
    several = sum(isinstance(value := row.values.get(summary), list) and len(value) > 1 for row in table.rows)
    said = f"{several} rows have several summaries: the first is learned, and answers are measured against all."
    notes = (said,) if several else ()
    return Recognition(
        f"{summary} says what is in {source}",
        frozenset(found),
        one(to_record, source=source, summary=summary),
        notes,
    )


def columns_of(table: Table) -> tuple[str, str] | None:
    """The columns of the long text and of its summary."""
    source, summary = table.texts(LONG), table.texts(SHORT)
    if source is None or summary is None:
        source, summary = table.named(("source",), ("a list",)), table.texts(("target",))
    return None if source is None or summary is None else (source, summary)


def to_record(row: Row, source: str = "document", summary: str = "summary") -> Completion:
    """The row's text with a line break, and its first summary."""
    text = as_joined_text(row, source, required(row, row.values, source, source), "the text", " ")
    return answered(f"{text.strip()}\n", references(row, summary))


def references(row: Row, summary: str = "summary") -> tuple[str, ...]:
    """All summaries of a row."""
    value = required(row, row.values, summary, summary)
    if isinstance(value, str):
        return (as_filled_text(row, summary, value, "the summary").strip(),)
    listed = as_list(row, summary, value, "summaries")
    if not listed:
        raise fault(row, summary, "there is no summary.", "Add one, or leave this row out.")
    texts = (as_filled_text(row, f"{summary}[{index}]", part, "the summary") for index, part in enumerate(listed))
    return tuple(text.strip() for text in texts)
