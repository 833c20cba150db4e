"""The rows that models are measured on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from luthier.errors import DataError
from luthier.evaluation.intervals import bootstrap_of
from luthier.evaluation.measure import Comparison, Measure
from luthier.types import Example, IntArray, Origin, Record


@dataclass(frozen=True)
class Rows:
    """Rows with their places, and what each teaches, aligned. notes: what is to be said of them."""

    records: Sequence[tuple[Record, Origin]]
    examples: Sequence[Example]
    notes: tuple[str, ...] = ()

    def first(self, limit: int | None) -> Rows:
        """The first so many rows that teach something; None takes all. Raises: DataError, if there are none."""
        if not self.records:
            raise DataError("There are no rows to evaluate on.", "Give a file that holds at least one row.")
        chosen = list(zip(self.records, self.examples, strict=True))[:limit]
        kept = [(record, example) for record, example in chosen if example.num_learned]
        notes = list(self.notes)
        if len(chosen) < len(self.records):
            notes.append(f"The first {len(chosen)} of {len(self.records)} rows were used.")
        if len(kept) < len(chosen):
            notes.append(f"{len(chosen) - len(kept)} of {len(chosen)} rows teach nothing: they do not count.")
        if not kept:
            raise DataError(
                "No row teaches anything, so there is nothing to measure.",
                "Give rows of the form that the run learned from.",
                file=chosen[0][0][1].file,
            )
        return Rows([record for record, _ in kept], [example for _, example in kept], tuple(notes))


OfRows = Callable[[IntArray], float]
"""A number that is no mean over rows, of the rows with these indices."""


def statistic_measure(name: str, of_rows: Sequence[OfRows], num_rows: int) -> Measure:
    """A measure, the higher the better, that is a statistic of all rows: one for each candidate, each later one against the first."""
    first = of_rows[0]

    def gain_of(later: OfRows) -> OfRows:
        return lambda index_R: later(index_R) - first(index_R)

    estimates = tuple(bootstrap_of(of, num_rows) for of in of_rows)
    gains = tuple(Comparison(bootstrap_of(gain_of(later), num_rows), None) for later in of_rows[1:])
    return Measure(name, True, num_rows, estimates, gains)
