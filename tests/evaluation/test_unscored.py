"""Answers without a score: a model that cannot be read must not look better for it."""

from __future__ import annotations

import pytest

from luthier.evaluation.grading.contract import Grade
from luthier.evaluation.unscored import scores_of, with_lowest

NONE, UNJUDGED = Grade(None, "no JSON"), Grade(None, "the judge slept", is_unjudged=True)


def test_an_answer_that_has_no_score_by_its_own_fault_counts_as_the_lowest() -> None:
    assert with_lowest([[Grade(1.0), Grade(0.5), NONE], [NONE, Grade(0.5), NONE]]) == [
        [1.0, 0.5, None],
        [0.0, 0.5, None],
    ]
    assert with_lowest([[Grade(7.0), Grade(3.0)], [NONE, Grade(9.0)]]) == [[7.0, 3.0], [3.0, 9.0]]
    assert with_lowest([[Grade(1.0)], [UNJUDGED]]) == [[1.0], [None]]


def test_a_model_that_loses_its_failures_is_not_found_better() -> None:
    base = [Grade(float(row % 2)) for row in range(200)]  # half of its answers are right
    tuned = [Grade(1.0) if row % 2 else NONE for row in range(200)]  # and half of this one's cannot be read
    scores = scores_of(with_lowest([base, tuned]))
    assert scores is not None
    assert scores.measure("right").estimates[1].value == 0.5
    assert scores.measure("right").verdict(1) == "same"
    worse = scores_of(with_lowest([[Grade(1.0)] * 200, tuned]))
    assert worse is not None
    assert worse.measure("right").verdict(1) == "worse"


def test_rows_that_were_not_judged_are_left_out_and_widen_what_is_judged() -> None:
    base = [Grade(0.4)] * 100
    tuned = [Grade(0.9)] * 60 + [UNJUDGED] * 40
    scores = scores_of(with_lowest([base, tuned]))
    assert scores is not None
    assert scores.num_partly == 40
    measure = scores.measure("judged")
    assert (measure.num_rows, measure.unscored) == (60, pytest.approx(0.4 * (1 + 0.5)))
    assert measure.verdict(1) == "unclear"
    few = scores_of(with_lowest([base, [Grade(0.9)] * 95 + [UNJUDGED] * 5]))
    assert few is not None
    assert few.measure("judged").verdict(1) == "better"


def test_rows_without_a_score_for_anyone_tell_nothing() -> None:
    scores = scores_of([[1.0, None], [0.0, None]])
    assert scores is not None
    assert (scores.values_CR, scores.num_partly) == ([[1.0], [0.0]], 0)
    assert scores_of([[1.0, None], [None, 0.0]]) is None


def test_scores_without_ends_have_a_margin_by_their_spread_wherever_they_lie() -> None:
    scores = scores_of([[0.2, 0.4] * 10, [0.3, 0.4] * 10])
    assert scores is not None
    assert scores.measure("reward").margin == 0.02
    assert scores.measure("reward", is_open=True).margin == pytest.approx(0.01)
    assert scores.measure("reward", is_open=True).span == pytest.approx(0.2)
