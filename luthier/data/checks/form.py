"""What the form of the rows says of each: the one place where the check asks the readers of forms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from luthier.data.checks.findings import Finding, Notes
from luthier.data.formats import Natural, reading_of, recognise_any
from luthier.data.formats.unsuited import OBJECTIVES
from luthier.data.reading import Row
from luthier.data.settings import NO_WISHES, FormatName, Wishes
from luthier.errors import DataError
from luthier.types import Gives

KIND = "unreadable-row"
MOST_MISREAD = 0.5
"""If a larger share of the rows does not fit the form, the form was misread, and not the rows."""


@dataclass(frozen=True)
class ReadAs:
    """How a recipe reads rows. takes: what its objective learns from; None where none asks, so that rows are what they most
    naturally are. max_rows: of the rows, the first so many are trained on."""

    format: FormatName = "auto"
    wishes: Wishes = NO_WISHES
    takes: Gives | None = None
    max_rows: int | None = None

    def recognised(self, rows: Sequence[Row]) -> Natural | DataError:
        """The form of rows that begin so, as training finds it; or why nothing can be learned from them."""
        rows = rows[: self.max_rows]
        try:
            if self.takes is None:
                return recognise_any(rows, self.format, self.wishes)
            found = reading_of(rows, self.format, self.takes, self.wishes)
        except DataError as error:
            return error
        return Natural(found.name, self.takes, found.reason, OBJECTIVES[self.takes], found.to_records)


NATURALLY = ReadAs()


def looked_at(rows: Sequence[Row], form: Natural, notes: Notes) -> Sequence[Row]:
    """The rows, after what could not be read as their form was noted."""
    notes.looked(KIND, "", len(rows))
    for fault in faults_of(rows, form):
        notes.suspect("", fault, MOST_MISREAD)
    return rows


def faults_of(rows: Sequence[Row], form: Natural) -> Iterator[Finding]:
    """Why rows could not be read as their form."""
    for row in rows:
        try:
            form.to_records(replace(row, parts={}))  # the check itself finds the line of each part
        except DataError as error:
            origin = row.origin
            yield Finding(KIND, "error", origin.file, origin.line, error.field, error.found, error.mend)
