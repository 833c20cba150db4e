"""Classes told apart, measured: macro-F1 by its definition, the majority as what is beaten, intervals that hold them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from models.rows import class_rows
from models.tiny import CLASSES, tiny_model
from near import assert_near

from luthier.errors import DataError
from luthier.evaluation.candidates import Candidate
from luthier.evaluation.classification import Guesses, class_measures, evaluate_classes, majority
from luthier.evaluation.metrics import macro_f1
from luthier.evaluation.rows import Rows
from luthier.methods import PromptTuning
from luthier.models.language_model import LanguageModel
from luthier.ops.workers import Workers
from luthier.prediction.passes import Passes, class_logits, said_of_each
from luthier.types import Labelled, Origin

TRUE = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 0])


def sure_of(answers: np.ndarray, num_classes: int = 3) -> Guesses:
    """A candidate that gives its answers a probability of 0.8."""
    other = math.log(0.2 / (num_classes - 1))
    logprob_RC = np.full((len(answers), num_classes), other, dtype=np.float32)
    logprob_RC[np.arange(len(answers)), answers] = math.log(0.8)
    return Guesses("tuned", logprob_RC)


def test_macro_f1_is_the_mean_over_classes_of_the_harmonic_mean_of_precision_and_recall() -> None:
    answers = np.array([0, 0, 1, 1, 2, 0])
    true = np.array([0, 1, 1, 1, 0, 0])
    precision, recall = [2 / 3, 1.0], [2 / 3, 2 / 3]
    f1 = [2 * p * r / (p + r) for p, r in zip(precision, recall, strict=True)]
    assert macro_f1(answers, true, 4) == pytest.approx((f1[0] + f1[1] + 0) / 3)  # class 3 neither is nor is answered
    assert macro_f1(true, true, 4) == 1


def test_the_majority_answers_its_class_and_its_loss_is_the_entropy_of_the_shares() -> None:
    guess = majority(TRUE, 4)
    assert set(guess.answer_R.tolist()) == {0}
    shares = np.array([7, 3, 2]) / 12
    loss, accuracy, f1 = class_measures([guess, sure_of(TRUE, 4)], TRUE)
    assert loss.estimates[0].value == pytest.approx(-(shares * np.log(shares)).sum(), rel=1e-5)
    assert accuracy.estimates[0].value == pytest.approx(7 / 12)
    assert f1.estimates[0].value == pytest.approx(macro_f1(guess.answer_R, TRUE, 4))


def test_one_that_is_always_right_is_better_on_all_three_and_one_that_is_the_majority_on_none() -> None:
    twice = np.concatenate([TRUE, TRUE])
    measures = class_measures([majority(twice, 3), sure_of(twice)], twice)
    assert [measure.verdict(1) for measure in measures] == ["better"] * 3
    assert measures[0].estimates[1].value == pytest.approx(-math.log(0.8), rel=1e-5)
    assert (measures[1].estimates[1].value, measures[2].estimates[1].value) == (1, 1)
    for measure in measures:
        assert all(estimate.low <= estimate.value <= estimate.high for estimate in measure.estimates)
    for times, verdict in ((1, "unclear"), (20, "same")):  # a dozen rows that do not differ show little
        many = np.tile(TRUE, times)
        same = class_measures([majority(many, 3), sure_of(np.zeros(len(many), dtype=np.int64))], many)
        assert [measure.verdict(1) for measure in same[1:]] == [verdict] * 2


def candidate(name: str) -> Candidate:
    model = tiny_model(name, purpose="classes")
    PromptTuning(num_virtual_tokens=2).attach(model, "default", seed=0)
    return Candidate("tuned", model, "default")


def rows_for(model: LanguageModel) -> list:
    return class_rows((9, 4, 12, 7, 5, 6, 11, 3, 8, 10), model.anatomy.family.pooled)


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("workers", [1, 2])
def test_the_logits_of_rows_come_in_their_order_whatever_the_batches(name: str, workers: int) -> None:
    tuned = candidate(name)
    rows = rows_for(tuned.model)
    with Workers(workers) as threads:
        in_parts, whole = (
            torch.cat(said_of_each(tuned.model, "default", rows, class_logits, Passes(threads, budget), "classes"))
            for budget in (20, 4096)
        )
    assert_near(in_parts, whole)
    assert whole.shape == (len(rows), len(CLASSES))


def test_an_evaluation_names_the_majority_and_shows_answers_by_the_classes_names() -> None:
    tuned = candidate("bert")
    rows = rows_for(tuned.model)
    records = [
        (Labelled(f"text {i}", "more" if i else None, CLASSES[int(row.token_N[0])]), Origin("rows.jsonl", i + 1))
        for i, row in enumerate(rows)
    ]
    with Workers(1) as threads:
        found = evaluate_classes([tuned], Rows(records, rows), Passes(threads), limit=7)
        with pytest.raises(DataError, match="no rows"):
            evaluate_classes([tuned], Rows([], []), Passes(threads))
    assert found.candidates == ("majority", "tuned")
    assert [measure.name for measure in found.measures] == ["loss", "accuracy", "macro-F1", "calibration error"]
    assert found.num_rows == 7
    assert found.notes[0] == "The first 7 of 10 rows were used."
    assert found.answers[1].asked == "text 1 | more"
    assert {answer for answered in found.answers for answer in answered.answers} <= set(CLASSES)
    assert found.answers[0].answers[0] == "angry"


def test_a_row_beyond_the_context_is_refused_at_its_line() -> None:
    tuned = candidate("bert")
    rows = class_rows((63,), "first")
    with Workers(1) as threads, pytest.raises(DataError, match="holds 64") as caught:
        evaluate_classes([tuned], Rows([(Labelled("a", None, "angry"), Origin("r", 1))], rows), Passes(threads))
    assert caught.value.line == 1
