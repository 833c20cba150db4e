"""Answers measured by graders that the user names: a measure each, over the rows that every candidate's answer got a score for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from luthier.data.reading import read_rows
from luthier.errors import DataError, UsageError
from luthier.evaluation.compare import comparisons
from luthier.evaluation.grading import Aids, Grade, Grader, Sample
from luthier.evaluation.intervals import bootstrap_mean
from luthier.evaluation.measure import SCORE_MARGIN, Measure, margin_by_spread
from luthier.evaluation.named_metrics import named_measure
from luthier.evaluation.verdict import Answered, Evaluation
from luthier.types import Origin

Columns = Mapping[tuple[str, int], Mapping[str, Any]]
"""A row's columns as they stand in its file, by the file and the line."""


@dataclass(frozen=True)
class Grading:
    """The graders, further metrics by name, what graders may use, and the columns of the rows."""

    graders: Sequence[Grader]
    named: Sequence[str] = ()
    aids: Aids = field(default_factory=Aids)
    columns: Columns = field(default_factory=dict)

    def item(self, answered: Answered) -> dict[str, Any]:
        """What a grader sees of a row: its columns, and `prompt` and `reference` as the evaluation has them."""
        own = self.columns.get((answered.origin.file, answered.origin.line), {})
        return {"prompt": answered.asked, "reference": answered.reference, **own}


def columns_of(origins: Iterable[Origin]) -> Columns:
    """The columns of the rows at these places. Files that can no longer be read give none."""
    files = dict.fromkeys(origin.file for origin in origins)
    columns: dict[tuple[str, int], Mapping[str, Any]] = {}
    for name in files:
        if Path(name).exists():
            for row in read_rows(name, lambda text: None):
                columns[row.origin.file, row.origin.line] = row.values
    return columns


def graded(evaluation: Evaluation, grading: Grading, progress: Callable[[str, int, int], None]) -> Evaluation:
    """The evaluation with a measure for each further metric and each grader.

    Raises: UsageError, if nothing was answered; DataError where a grader has no score for any row.
    """
    if not evaluation.answers:
        raise UsageError(
            "There are no answers to grade.", "Graders are for models that write, on rows that ask something."
        )
    measures, notes = [], []
    references = [answered.references for answered in evaluation.answers]
    texts = [
        [answered.answers[index] for answered in evaluation.answers] for index in range(len(evaluation.candidates))
    ]
    measured = {measure.name for measure in evaluation.measures}
    for name in (each for each in grading.named if each not in measured):
        measure, note = named_measure(name, texts, references)
        measures.append(measure)
        notes += note
    for number, grader in enumerate(grading.graders):
        progress("grading", number, len(grading.graders))
        measure, note = _measured(grader, grading, evaluation.answers)
        measures.append(measure)
        notes += note
    return replace(evaluation, measures=(*evaluation.measures, *measures), notes=(*evaluation.notes, *notes))


def _measured(grader: Grader, grading: Grading, answers: Sequence[Answered]) -> tuple[Measure, list[str]]:
    items = [grading.item(answered) for answered in answers]
    num_candidates = len(answers[0].answers)
    grades_CR = [grader.grade_all(_samples(answers, index), items, grading.aids) for index in range(num_candidates)]
    rows = [row for row in range(len(answers)) if all(grades[row].score is not None for grades in grades_CR)]
    fault = next((grade.fault for grades in grades_CR for grade in grades if grade.score is None), None)
    if not rows:
        raise DataError(
            f"The grader {grader.name!r} has no score for any row: {fault}.",
            "docs/grading.md says what a grader may read.",
        )
    scores_CR = [[_score(grades[row]) for row in rows] for grades in grades_CR]
    estimates = tuple(bootstrap_mean(scores) for scores in scores_CR)
    are_shares = all(0 <= score <= 1 for scores in scores_CR for score in scores)
    margin = SCORE_MARGIN if are_shares else margin_by_spread(scores_CR[0])
    missing = len(answers) - len(rows)
    notes = [f"{grader.name}: {missing} of {len(answers)} rows have no score ({fault})."] if missing else []
    return Measure(grader.name, True, len(rows), estimates, comparisons(scores_CR), margin), notes


def _samples(answers: Sequence[Answered], candidate: int) -> list[Sample]:
    return [Sample(answered.answers[candidate], answered.asked) for answered in answers]


def _score(grade: Grade) -> float:
    assert grade.score is not None
    return grade.score
