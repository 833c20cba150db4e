"""Answers measured by graders that the user names: a measure each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from luthier.data.reading import read_rows
from luthier.errors import DataError, UsageError
from luthier.evaluation.grading import Aids, Grade, Grader, Sample
from luthier.evaluation.measure import Measure
from luthier.evaluation.named_metrics import ALWAYS, named_measure, row_scores
from luthier.evaluation.unscored import Scores, scores_of, with_lowest
from luthier.evaluation.verdict import Answered, Evaluation, RowScores
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
    places = {(origin.file, origin.line) for origin in origins}
    columns: dict[tuple[str, int], Mapping[str, Any]] = {}
    for name in dict.fromkeys(file for file, _ in sorted(places)):
        if Path(name).exists():
            for row in read_rows(name, lambda text: None):
                if (row.origin.file, row.origin.line) in places:
                    columns[row.origin.file, row.origin.line] = row.values
    return columns


def graded(evaluation: Evaluation, grading: Grading, progress: Callable[[str, int, int], None]) -> Evaluation:
    """The evaluation with a measure for each further metric and each grader, and the scores of its rows by the first grader, or else by
    the first metric that has some.

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
    there = {measure.name for measure in evaluation.measures}
    for name in (each for each in grading.named if ALWAYS.get(each, each) not in there):
        measure, note = named_measure(name, texts, references)
        measures.append(measure)
        notes += note
    found = ((name, row_scores(name, texts, references)) for name in grading.named)
    scores = next((RowScores(name, tuple(of_rows)) for name, of_rows in found if of_rows is not None), None)
    for number, grader in enumerate(grading.graders):
        progress("grading", number, len(grading.graders))
        grades_CR = _grades(grader, grading, evaluation.answers)
        measure, note = _measure(grader, grades_CR)
        measures.append(measure)
        notes += note
        if number == 0:
            scores = RowScores(grader.name, tuple(zip(*with_lowest(grades_CR), strict=True)))
    return replace(
        evaluation, measures=(*evaluation.measures, *measures), notes=(*evaluation.notes, *notes), scores=scores
    )


def measured(grader: Grader, grading: Grading, answers: Sequence[Answered]) -> tuple[Measure, list[str]]:
    """What a grader measures of answers, and what is to be said of those without a score. Raises: DataError, if none has one."""
    return _measure(grader, _grades(grader, grading, answers))


def _grades(grader: Grader, grading: Grading, answers: Sequence[Answered]) -> list[list[Grade]]:
    """The grades of each candidate's answers."""
    items = [grading.item(answered) for answered in answers]
    return [grader.grade_all(_samples(answers, index), items, grading.aids) for index in range(len(answers[0].answers))]


def _measure(grader: Grader, grades_CR: Sequence[Sequence[Grade]]) -> tuple[Measure, list[str]]:
    missing = [sum(grade.score is None for grade in grades) for grades in grades_CR]
    fault = next((grade.fault for grades in grades_CR for grade in grades if grade.score is None), None)
    scores = None if min(missing) == len(grades_CR[0]) else scores_of(with_lowest(grades_CR))
    if scores is None:
        raise DataError(
            f"The grader {grader.name!r} has no score for any row: {fault}.",
            "docs/grading.md says what a grader may read.",
        )
    return scores.measure(grader.name), _notes(grader.name, scores, grades_CR, fault)


def _notes(name: str, scores: Scores, grades_CR: Sequence[Sequence[Grade]], fault: str | None) -> list[str]:
    """What is to be said of answers without a score."""
    of_rows = list(zip(*grades_CR, strict=True))
    total = len(of_rows)
    unscored = sum(all(grade.score is None for grade in of_row) for of_row in of_rows)
    own = total - unscored - scores.num_partly - sum(all(g.score is not None for g in of_row) for of_row in of_rows)
    notes = []
    if unscored:
        notes.append(f"{name}: {unscored} of {total} rows have no score ({fault}).")
    if own:
        notes.append(
            f"{name}: in {own} of {total} rows some answers have no score ({fault}): they count as the lowest."
        )
    if scores.num_partly:
        notes.append(
            f"{name}: in {scores.num_partly} of {total} rows some answers were not judged ({fault}): these rows are left out, and "
            "what they could have changed is added to the interval before anything is called better, worse or the same."
        )
    return notes


def _samples(answers: Sequence[Answered], candidate: int) -> list[Sample]:
    return [Sample(answered.answers[candidate], answered.asked) for answered in answers]
