"""The one verdict of an evaluation, from measures that are known."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray

from luthier.evaluation.forgetting.found import Forgetting
from luthier.evaluation.intervals import Estimate
from luthier.evaluation.measure import Comparison, Measure, Witness, margin_by_spread
from luthier.evaluation.outcome import Outcome, outcome_of
from luthier.evaluation.rows import statistic_measure


def measured(
    name: str,
    low: float,
    high: float,
    p: float = 1e-6,
    *,
    rows: int = 48,
    higher_is_better: bool = True,
    margin: float = 0.02,
    witness: Witness = "answers",
) -> Measure:
    """A measure whose difference lies in an interval; as many rows rise as its middle says."""
    middle = (low + high) / 2
    rises, falls = (40, 8) if middle > 0 else (8, 40)
    comparison = Comparison(Estimate(middle, low, high), p, rises, falls)
    estimates = (Estimate(0.5, 0.4, 0.6), Estimate(0.5 + middle, 0.4, 0.6))
    return Measure(name, higher_is_better, rows, estimates, (comparison,), margin, witness)


def loss(low: float, high: float, p: float = 1e-6, rows: int = 48) -> Measure:
    return measured("loss", low, high, p, rows=rows, higher_is_better=False, margin=0.01, witness="likelihood")


def outcome(*measures: Measure, forgetting: Forgetting | None = None) -> Outcome:
    return outcome_of(measures, 1, ("base", "tuned"), measures[0].num_rows, forgetting)


def general_text(low: float, high: float) -> Forgetting:
    part = measured("general text", low, high, rows=200, higher_is_better=False, margin=0.1, witness="likelihood")
    return Forgetting((part,))


def test_a_lower_loss_is_better_and_a_higher_one_worse() -> None:
    assert outcome(loss(-0.5, -0.3)).kind == "better"
    assert outcome(loss(0.3, 0.5)).kind == "worse"


def test_a_difference_within_the_margin_is_none_however_sure_it_is() -> None:
    assert outcome(loss(-0.0003, -0.0001)).kind == "same"


def test_a_loss_that_stays_is_the_same_only_where_no_answer_changed_or_answers_are_shown_to_be_as_good() -> None:
    still = loss(-0.0003, -0.0001)
    assert outcome(still, measured("ROUGE-L", -0.05, 0.03, 0.5)).kind == "unclear"
    assert outcome(still, measured("ROUGE-L", -0.01, 0.01, 0.5, rows=400)).kind == "same"
    untouched = outcome(still, unchanged("ROUGE-L", 24))
    assert untouched.kind == "same"
    assert "ROUGE-L 0.500 → 0.500 (+0 [+0, +0]; no row differs)" in untouched.sentence
    assert outcome(unchanged("ROUGE-L", 24)).kind == "unclear"


def unchanged(name: str, rows: int) -> Measure:
    """A score that is the same on every row."""
    return Measure(name, True, rows, (Estimate(0.5, 0.4, 0.6),) * 2, (Comparison(Estimate(0.0, 0.0, 0.0), 1.0),))


def test_few_rows_that_do_not_differ_do_not_show_that_none_would() -> None:
    assert unchanged("exact match", 10).verdict(1) == "unclear"
    assert unchanged("exact match", 149).verdict(1) == "unclear"
    assert unchanged("exact match", 151).verdict(1) == "same"  # 3 / 151 is within 0.02
    assert replace(unchanged("grade", 151), span=10.0).verdict(1) == "unclear"
    assert replace(unchanged("grade", 151), span=10.0, margin=0.2).verdict(1) == "same"
    assert not replace(unchanged("questions", 20), margin=0.05).is_kept(1)
    assert replace(unchanged("questions", 64), margin=0.05).is_kept(1)


def test_statistics_of_all_rows_must_be_as_unlikely_by_chance_as_their_number_asks() -> None:
    def statistic(name: str, low: float, high: float, p: float) -> Measure:
        found = measured(name, low, high)
        comparison = replace(found.comparisons[0], sign_test_p=None, rises=0, falls=0, bootstrap_p=p)
        return replace(found, comparisons=(comparison,))

    one = statistic("bleu", 0.01, 0.2, 0.03)
    assert outcome(one).kind == "better"
    assert "; p = 0.03)" in outcome(one).sentence
    others = [statistic(name, -0.2, 0.2, 0.9) for name in ("chrf", "macro-f1")]
    assert outcome(one, *others).kind == "unclear"
    assert outcome(statistic("bleu", 0.1, 0.2, 0.001), *others).kind == "better"


def test_rows_that_were_not_judged_can_take_a_verdict_away() -> None:
    surely = measured("judged", 0.1, 0.2)
    assert surely.verdict(1) == "better"
    assert replace(surely, unscored=0.05).verdict(1) == "better"
    assert replace(surely, unscored=0.15).verdict(1) == "unclear"


def test_eight_statistics_of_models_that_are_alike_come_to_no_verdict_in_at_least_95_of_100_draws() -> None:
    clear = 0
    for seed in range(100):
        draw = np.random.default_rng(seed)
        measures = [
            statistic_measure(
                f"statistic {number}", [partial(share_of, draw.random((60, 2))) for _ in range(2)], 60, resamples=400
            )
            for number in range(8)
        ]
        clear += outcome(*measures).kind != "unclear"
    assert clear <= 5


def share_of(values_R2: NDArray[np.float64], index_R: NDArray[np.int64]) -> float:
    """A number that is no mean over rows: the one column's share of both."""
    one, both = values_R2[index_R, 0].sum(), values_R2[index_R].sum()
    return float(one / both)


def test_what_is_neither_different_nor_shown_to_be_the_same_is_unclear() -> None:
    assert outcome(loss(-0.2, 0.1, 0.4)).kind == "unclear"
    few = outcome(loss(-0.5, -0.3, rows=9))
    assert few.kind == "unclear"
    assert "too few" in few.sentence


def test_the_sign_test_must_agree_with_the_interval() -> None:
    assert outcome(loss(-0.5, -0.3, p=0.2)).kind == "unclear"
    mean_alone = Comparison(Estimate(0.2, 0.1, 0.3), 1e-6, 8, 40)  # a few rows rose by much, most fell
    estimates = (Estimate(0.5, 0.4, 0.6), Estimate(0.7, 0.6, 0.8))
    assert Measure("ROUGE-L", True, 48, estimates, (mean_alone,)).verdict(1) == "unclear"


def test_answers_count_before_the_loss() -> None:
    broken = outcome(loss(-0.5, -0.3), measured("ROUGE-L", -0.3, -0.2))
    assert broken.kind == "worse"
    assert "; but loss" in broken.sentence
    assert outcome(loss(0.3, 0.5), measured("ROUGE-L", 0.2, 0.3)).kind == "better"


def test_answers_that_are_better_by_one_measure_and_worse_by_another_are_unclear() -> None:
    mixed = outcome(loss(-0.5, -0.3), measured("ROUGE-L", -0.3, -0.2), measured("exact match", 0.1, 0.2))
    assert mixed.kind == "unclear"
    assert "better by loss" in mixed.sentence
    assert "worse by ROUGE-L" in mixed.sentence


def test_several_measures_of_answers_must_each_be_the_less_likely_by_chance() -> None:
    one = measured("ROUGE-L", 0.1, 0.2, p=0.03)
    assert outcome(one).kind == "better"
    assert outcome(one, measured("F1", -0.2, 0.2, 0.9), measured("BLEU", -0.2, 0.2, 0.9)).kind == "unclear"


def test_one_that_lost_what_it_knew_forgot_whatever_it_won() -> None:
    forgot = outcome(loss(-0.5, -0.3), forgetting=general_text(0.4, 0.6))
    assert forgot.kind == "forgot"
    assert forgot.sentence.startswith("tuned forgot: general text 0.500 → 1.000 (+0.5 [+0.4, +0.6]")
    assert "On 48 rows it is better" in forgot.sentence


def test_a_little_drift_of_what_it_knew_is_no_forgetting() -> None:
    kept = outcome(loss(-0.5, -0.3), forgetting=general_text(0.02, 0.06))
    assert kept.kind == "better"
    assert kept.sentence.endswith("what it knew is kept.")
    unsure = outcome(loss(-0.5, -0.3), forgetting=general_text(0.05, 0.3))
    assert unsure.kind == "better"
    assert "unclear from general text" in unsure.sentence


def test_parts_and_other_scales_take_no_vote() -> None:
    part = measured("loss: one task", 0.5, 0.9, higher_is_better=False, witness="part")
    scale = Measure("perplexity", False, 48, (Estimate(2, 1, 3), Estimate(1, 1, 1)), (Comparison(None, None),))
    assert outcome(loss(-0.5, -0.3), part, scale).kind == "better"


def test_infinite_losses_on_both_sides_have_no_verdict() -> None:
    nothing = Comparison(Estimate(float("nan"), float("nan"), float("nan")), 1e-9, 40, 8)
    estimates = (Estimate(float("inf"), 1, float("inf")),) * 2
    assert Measure("loss", False, 48, estimates, (nothing,)).verdict(1) == "unclear"


def test_the_margin_of_scores_of_any_scale_is_a_tenth_of_their_spread() -> None:
    assert margin_by_spread([10.0, 30.0] * 20) == pytest.approx(1.0)
