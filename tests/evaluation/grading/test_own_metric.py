"""A metric of the user's own, in one limited process for all rows."""

from __future__ import annotations

import pytest

from luthier.errors import UsageError
from luthier.evaluation.grading import Aids, Sample, grader_of


def scores(source: str, answers: list[str], **limits: float) -> list[tuple[float | None, str | None]]:
    grader = grader_of({"type": "metric", "source": source, **({"limits": limits} if limits else {})})
    rows = [{"wanted": "yes", "number": number} for number in range(len(answers))]
    grades = grader.grade_all([Sample(answer) for answer in answers], rows, Aids())
    return [(grade.score, grade.fault) for grade in grades]


def test_a_metric_sees_the_row_and_the_answer() -> None:
    source = "def metric(row, answer):\n    return row['wanted'] == answer and row['number'] / 4"
    assert scores(source, ["yes", "no", "yes"]) == [(0, None), (0, None), (0.5, None)]


def test_a_row_on_which_it_fails_has_no_score_and_the_others_have() -> None:
    source = "def metric(row, answer):\n    return 1 / (row['number'] - 1) if row['number'] < 2 else 'many'"
    first, second, third = scores(source, ["a", "b", "c"])
    assert first == (-1, None)
    assert second == (None, "metric failed: ZeroDivisionError: division by zero")
    assert third[0] is None
    assert "no number" in str(third[1])


def test_a_process_that_ends_early_leaves_what_it_reported() -> None:
    source = "import os\ndef metric(row, answer):\n    return 1 if row['number'] == 0 else os._exit(3)"
    first, second = scores(source, ["a", "b"])
    assert first == (1, None)
    assert second[0] is None
    slow = "def metric(row, answer):\n    while True: pass"
    assert scores(slow, ["a"], seconds=1) == [(None, "metric took more than 1 s for all rows")]


def test_a_file_that_defines_no_metric_is_refused() -> None:
    with pytest.raises(UsageError, match=r"must define metric\(row, answer\)"):
        grader_of({"type": "metric", "source": "def grade(sample, item):\n    return 1"})
