"""Rows → records. One file per form; the list below is the order in which forms are tried.

A form is recognised by its columns and the first 200 rows. A form with more structure goes before one with less, so that
Alpaca's instruction and output are not taken for a bare prompt and completion. An objective tries those forms alone that
give what it learns from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from luthier.data.formats import alpaca, chat, classification, completion, sharegpt, text
from luthier.data.formats.table import Recognition, Table, tabulate
from luthier.data.formats.unsuited import likeness, objection
from luthier.data.reading import Row
from luthier.data.settings import FormatName
from luthier.errors import DataError
from luthier.types import Gives, Origin, Record

MOST_SHOWN = 20


class Form(Protocol):
    """What each file here holds."""

    NAME: FormatName
    GIVES: Gives
    COLUMNS: str

    def recognise(self, table: Table) -> Recognition | None:
        """How these rows are read, if they have this form."""


FORMS: tuple[Form, ...] = (chat, sharegpt, alpaca, completion, text, classification)


def forms_for(takes: Gives) -> tuple[Form, ...]:
    """The forms that give what an objective learns from, in the order in which they are tried."""
    return tuple(form for form in FORMS if takes == form.GIVES)


@dataclass(frozen=True)
class Recognised:
    """Records with their origins; the form they had, why it was taken for that, and what a user should know."""

    name: FormatName
    reason: str
    notes: tuple[str, ...]
    records: list[tuple[Record, Origin]]


def to_records(rows: Sequence[Row], format: FormatName, takes: Gives = "text") -> Recognised:
    """Every row as a record. With "auto" the form is recognised; a name takes the rows as that form.

    takes: what is to be learned from.

    Raises: DataError, if no form fits, or for the first row at fault; it says how many more there are.
    """
    table = tabulate(rows)
    form, recognition = _recognise(table, format, takes)
    records, found = _convert(rows, recognition)
    if found:
        raise _summary(found, len(rows), form.NAME)
    notes = list(recognition.notes)
    ignored = [column for column in table.kinds if column not in recognition.reads]
    if ignored:
        notes.insert(0, f"Ignored columns: {', '.join(ignored)}.")
    reason = recognition.reason if format == "auto" else "data.format says so"
    return Recognised(form.NAME, reason, tuple(notes), records)


def faults(rows: Sequence[Row], format: FormatName, takes: Gives = "text") -> list[DataError]:
    """What is wrong with the rows: one error for each row at fault, in order, or one alone if no form fits."""
    try:
        _, recognition = _recognise(tabulate(rows), format, takes)
    except DataError as error:
        return [error]
    return _convert(rows, recognition)[1]


def _convert(rows: Sequence[Row], recognition: Recognition) -> tuple[list[tuple[Record, Origin]], list[DataError]]:
    records: list[tuple[Record, Origin]] = []
    found: list[DataError] = []
    for row in rows:
        try:
            records += [(record, row.origin) for record in recognition.to_records(row)]
        except DataError as error:
            found.append(error)
    return records, found


def _summary(found: list[DataError], num_rows: int, name: FormatName) -> DataError:
    """The first fault, with the number of all and where the first of them are."""
    first = found[0]
    if len(found) == 1:
        return first
    several_files = any(error.file != first.file for error in found)
    places = [error.where.partition(", field")[0] if several_files else str(error.line) for error in found[:MOST_SHOWN]]
    more = ", …" if len(found) > MOST_SHOWN else ""
    said = f"{first.found} In all {len(found)} of {num_rows} rows are at fault as {name} (lines {', '.join(places)}{more})."
    return DataError(said, first.mend, file=first.file, line=first.line, field=first.field)


# ── recognition ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _recognise(table: Table, format: FormatName, takes: Gives) -> tuple[Form, Recognition]:
    if not table.rows:
        raise DataError("there are no rows.", "Give at least one row.")
    file = table.rows[0].origin.file
    for form in forms_for(takes):
        if format not in ("auto", form.NAME):
            continue
        recognition = form.recognise(table)
        if recognition is None:
            continue
        against = objection(table, form.NAME) if format == "auto" else None
        if against is not None:
            found = f"the rows look like {form.NAME} ({recognition.reason}), but {against.found}"
            raise DataError(found, against.mend, file=file)
        return form, recognition
    raise _nothing_fits(table, format, file, takes)


def _nothing_fits(table: Table, format: FormatName, file: str, takes: Gives) -> DataError:
    columns = ", ".join(f"{column[:60]} ({kind})" for column, kind in table.kinds.items()) or "none"
    asked = [form for form in forms_for(takes) if format in ("auto", form.NAME)]
    expected = "; ".join(f"{form.NAME}: {form.COLUMNS}" for form in asked)
    if takes == "labels":
        found = f"the rows are no texts with classes. Columns found: {columns}."
        mend = "Rename the columns to text (text_pair for a second text) and label; or set objective.kind to sft."
        return DataError(found, f"{mend} Expected columns: {expected}.", file=file)
    doubt = likeness(table)
    if format == "auto":
        found = f"the rows fit no form that sft learns from. Columns found: {columns}."
    else:
        found = f"data.format is {format}, but the rows do not have that form. Columns found: {columns}."
    seems = f" {doubt.found[:1].upper()}{doubt.found[1:]}" if doubt.found else ""
    return DataError(f"{found}{seems}", f"{doubt.mend} Expected columns: {expected}.", file=file)
