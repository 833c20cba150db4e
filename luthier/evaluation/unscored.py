"""Scores of answers where some answers have none.

A row for which no candidate has a score tells nothing. One for which only some have one cannot be left out as if it did not matter:
a model whose answers cannot be read would lose just its failures, and look better for it. What an answer's own fault is counts as the
lowest score; where nobody judged the answer, its score may be any, and the intervals are that much wider when they are judged.

Shapes: C candidates, R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from luthier.evaluation.candidates import comparisons
from luthier.evaluation.grading.contract import Grade
from luthier.evaluation.intervals import bootstrap_mean
from luthier.evaluation.measure import Measure, open_scale_of, scale_of


@dataclass(frozen=True)
class Scores:
    """The scores of all candidates over the rows that each has one for. values_CR: theirs, at least one row.

    num_partly: how many rows only some candidates have a score for, which are none of these.
    """

    values_CR: Sequence[Sequence[float]]
    num_partly: int = 0

    def measure(self, name: str, *, is_open: bool = False) -> Measure:
        """The mean score; higher is better. is_open: the scores have no ends, whatever they are here."""
        values = self.values_CR
        margin, span = open_scale_of(values) if is_open else scale_of(values)
        found = comparisons(values)
        share = self.num_partly / (self.num_partly + len(values[0]))
        largest = max((abs(each.difference.value) for each in found if each.difference is not None), default=0.0)
        estimates = tuple(map(bootstrap_mean, values))
        moved = share * (span + largest)
        return Measure(name, True, len(values[0]), estimates, found, margin, span=span, unscored=moved)


def scores_of(values_CR: Sequence[Sequence[float | None]]) -> Scores | None:
    """The scores over the rows that all candidates have one for; None where there is no such row."""
    rows = [row for row in range(len(values_CR[0])) if all(own[row] is not None for own in values_CR)]
    some = sum(any(own[row] is not None for own in values_CR) for row in range(len(values_CR[0])))
    kept = [[value for row in rows if (value := own[row]) is not None] for own in values_CR]
    return Scores(kept, some - len(rows)) if rows else None


def with_lowest(grades_CR: Sequence[Sequence[Grade]]) -> list[list[float | None]]:
    """The scores, and the lowest one for an answer that has none by its own fault where another candidate's has one.

    The lowest is 0 for scores between 0 and 1, else the lowest that was given.
    """
    given = [grade.score for grades in grades_CR for grade in grades if grade.score is not None]
    lowest = 0.0 if all(0 <= score <= 1 for score in given) else min(given)
    is_scored_R = [any(grade.score is not None for grade in of_row) for of_row in zip(*grades_CR, strict=True)]
    return [
        [
            lowest if grade.score is None and is_scored and not grade.is_unjudged else grade.score
            for grade, is_scored in zip(grades, is_scored_R, strict=True)
        ]
        for grades in grades_CR
    ]
