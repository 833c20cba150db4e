"""Fields: a question, the named fields that it is about, and its answer.

    {"task": "proa", "question": "Is there a right of action?", "fields": {"text": "…"}, "answer": "No"}

For sets of many tasks whose inputs differ from task to task, as LegalBench's do (Guha et al. 2023,
https://arxiv.org/abs/2308.11462). The prompt is the question, and below it each field after its name.
"""

from __future__ import annotations

from luthier.data.formats.table import Recognition, Table, as_filled_text, as_object, as_text, fault, one, required
from luthier.data.reading import Row, kind_of
from luthier.data.settings import FormatName
from luthier.types import Completion, Gives

NAME: FormatName = "fields"
GIVES: Gives = "text"
COLUMNS = 'question, fields: {"name": "…"} and answer'

FIELDS = ("fields", "inputs")
QUESTIONS = ("question", "instruction", "prompt")
ANSWERS = ("answer", "output", "completion")


def recognise(table: Table) -> Recognition | None:
    """Rows with a question, an object of fields, and an answer."""
    fields = table.named(FIELDS, ("an object",))
    question, answer = table.named(QUESTIONS), table.named(ANSWERS)
    if fields is None or question is None or answer is None:
        return None
    reason = f"{answer} answers {question} about the {fields}"
    make = one(to_record, question=question, fields=fields, answer=answer)
    return Recognition(reason, frozenset({question, fields, answer, "task"}), make)


def to_record(row: Row, question: str = "question", fields: str = "fields", answer: str = "answer") -> Completion:
    """The row's question (which may be empty), its fields, and its answer."""
    asked = as_text(row, question, required(row, row.values, question, question)).strip()
    named = as_object(row, fields, required(row, row.values, fields, fields), '{"text": "…"}')
    lines = []
    for name, value in named.items():
        if isinstance(value, list | dict):
            found = f"expected text, found {kind_of(value)}."
            raise fault(row, f"{fields}.{name}", found, "Write it as a string, or leave this row out.")
        if value not in (None, ""):
            lines.append(f"{name}: {str(value).strip()}")
    if not lines:
        raise fault(row, fields, "all fields are empty.", "Fill one, or leave this row out.")
    said = as_filled_text(row, answer, required(row, row.values, answer, answer), "the answer").strip()
    return Completion("\n\n".join(part for part in (asked, "\n".join(lines)) if part) + "\n", said)
