"""What the form of the rows says of each: the one place where the check asks the readers of forms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from luthier.data.checks.findings import Finding
from luthier.data.checks.view import RowView
from luthier.data.formats import FORMS, recognise_any
from luthier.data.formats.table import tabulate
from luthier.data.reading import Row
from luthier.data.settings import FormatName
from luthier.errors import DataError
from luthier.types import Gives, Record

KIND = "unreadable-row"


@dataclass(frozen=True)
class ReadForm:
    """A form that the first rows have: its name, what its rows give, why it was taken, and what reads a row."""

    name: FormatName
    gives: Gives
    reason: str
    to_records: Callable[[Row], Sequence[Record]]


def recognise_form(first: Sequence[Row], format: FormatName) -> ReadForm | None:
    """The form that the first rows are most naturally read as; None if they have no form that something learns from."""
    try:
        natural = recognise_any(first, format)
    except DataError:
        return None
    table = tabulate(first)
    recognition = next(
        found
        for form in FORMS
        if (natural.name, natural.gives) == (form.NAME, form.GIVES) and (found := form.recognise(table)) is not None
    )
    return ReadForm(natural.name, natural.gives, natural.reason, recognition.to_records)


def fault_of(view: RowView, form: ReadForm) -> Finding | None:
    """Why a row could not be read as its form; None if it can."""
    try:
        form.to_records(Row(view.values, view.origin))
    except DataError as error:
        origin = view.origin
        return Finding(KIND, "error", origin.file, origin.line, error.field, error.found, error.mend)
    return None
