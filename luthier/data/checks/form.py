"""What the form of the rows says of each: the one place where the check asks the readers of forms."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.data.checks.findings import Finding
from luthier.data.checks.view import RowView
from luthier.data.formats import Natural, recognise_any
from luthier.data.reading import Row
from luthier.data.settings import FormatName, Wishes
from luthier.errors import DataError

KIND = "unreadable-row"


def recognise_form(first: Sequence[Row], format: FormatName, wishes: Wishes) -> Natural | None:
    """The form that the first rows are most naturally read as; None if they have no form that something learns from.

    Raises: DataError for a template that names a column which the rows do not have.
    """
    try:
        return recognise_any(first, format, wishes)
    except DataError:
        if wishes.template is not None:
            raise
        return None


def fault_of(view: RowView, form: Natural) -> Finding | None:
    """Why a row could not be read as its form; None if it can."""
    try:
        form.to_records(Row(view.values, view.origin))
    except DataError as error:
        origin = view.origin
        return Finding(KIND, "error", origin.file, origin.line, error.field, error.found, error.mend)
    return None
