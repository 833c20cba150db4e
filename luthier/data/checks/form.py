"""What the form of the rows says of each: the one place where the check asks the readers of forms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from luthier.data.checks.findings import Finding
from luthier.data.checks.view import RowView
from luthier.data.formats import forms_for
from luthier.data.formats.table import tabulate
from luthier.data.formats.unsuited import objection
from luthier.data.reading import Row
from luthier.data.settings import FormatName
from luthier.errors import DataError
from luthier.types import Gives, Record

KIND = "unreadable-row"
_TAKES: tuple[Gives, ...] = ("text", "labels")


@dataclass(frozen=True)
class ReadForm:
    """A form that the first rows have: its name, what its rows give, why it was taken, and what reads a row."""

    name: FormatName
    gives: Gives
    reason: str
    to_records: Callable[[Row], Sequence[Record]]


def recognise_form(first: Sequence[Row], format: FormatName) -> ReadForm | None:
    """The form of the first rows; None if they have no form that something could be learned from."""
    table = tabulate(first)
    for takes in _TAKES:
        for form in forms_for(takes):
            if format not in ("auto", form.NAME):
                continue
            recognition = form.recognise(table)
            if recognition is None:
                continue
            if format == "auto" and objection(table, form.NAME, takes) is not None:
                break
            return ReadForm(form.NAME, form.GIVES, recognition.reason, recognition.to_records)
    return None


def fault_of(view: RowView, form: ReadForm) -> Finding | None:
    """Why a row could not be read as its form; None if it can."""
    try:
        form.to_records(Row(view.values, view.origin))
    except DataError as error:
        origin = view.origin
        return Finding(KIND, "error", origin.file, origin.line, error.field, error.found, error.mend)
    return None
