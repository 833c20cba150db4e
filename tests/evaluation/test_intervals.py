import itertools
import math
import time
from statistics import NormalDist

import numpy as np
import pytest

from luthier.evaluation.intervals import (
    bootstrap_difference,
    bootstrap_mean,
    bootstrap_p,
    draws_of,
    percentile_interval,
    sign_test,
    wilson,
)


@pytest.mark.parametrize(
    ("right", "rows"), [(0, 10), (1, 10), (5, 10), (10, 10), (0, 1), (1, 1), (37, 48), (999, 1000)]
)
def test_wilson_ends_are_the_shares_at_which_the_score_test_just_rejects(right, rows):
    estimate = wilson(right, rows)
    z = 1.959963984540054
    assert estimate.value == right / rows
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    for end in (estimate.low, estimate.high):
        assert (estimate.value - end) ** 2 == pytest.approx(z * z * end * (1 - end) / rows, abs=1e-12)


def test_wilson_covers_the_true_share_about_as_often_as_it_says():
    rows = 40
    for share in (0.1, 0.3, 0.5, 0.9):
        covered = sum(
            math.comb(rows, right) * share**right * (1 - share) ** (rows - right)
            for right in range(rows + 1)
            if wilson(right, rows).low <= share <= wilson(right, rows).high
        )
        assert 0.92 < covered < 0.98


def test_bootstrap_interval_is_that_of_all_possible_resamples():
    values, weights = [0.0, 1.0, 4.0, 9.0], [1.0, 2.0, 1.0, 3.0]
    means = [
        sum(values[i] * weights[i] for i in rows) / sum(weights[i] for i in rows)
        for rows in itertools.product(range(4), repeat=4)
    ]
    exact_low, exact_high = np.quantile(means, [0.1, 0.9])
    estimate = bootstrap_mean(values, weights, confidence=0.8, resamples=20_000)
    assert estimate.value == pytest.approx((0 * 1 + 1 * 2 + 4 * 1 + 9 * 3) / 7)
    assert estimate.low == pytest.approx(exact_low, abs=0.15)
    assert estimate.high == pytest.approx(exact_high, abs=0.15)


def test_bootstrap_of_many_rows_has_the_width_of_the_normal_interval():
    values = np.random.default_rng(0).normal(2.0, 3.0, 2000)
    estimate = bootstrap_mean(values.tolist())
    half = 1.96 * values.std() / math.sqrt(2000)
    assert estimate.high - estimate.low == pytest.approx(2 * half, rel=0.1)
    assert estimate.low < values.mean() < estimate.high


def test_bootstrap_repeats_with_its_seed_and_does_not_depend_on_how_draws_are_cut(monkeypatch):
    values = np.random.default_rng(1).random(50).tolist()
    whole = bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) == whole
    assert bootstrap_mean(values, seed=4) != whole
    monkeypatch.setattr("luthier.evaluation.intervals._DRAWS_AT_ONCE", 333)
    assert bootstrap_mean(values, seed=3) == whole


def test_a_difference_of_paired_rows_is_narrower_than_its_parts():
    hardness = np.random.default_rng(2).normal(0, 10, 200)
    before, after = hardness.tolist(), (hardness + 1).tolist()
    difference = bootstrap_difference(before, after)
    assert (difference.value, difference.low, difference.high) == pytest.approx((1, 1, 1))
    assert bootstrap_mean(before).high - bootstrap_mean(before).low > 1


def test_one_row_gives_a_point():
    estimate = bootstrap_mean([0.25])
    assert (estimate.value, estimate.low, estimate.high) == (0.25, 0.25, 0.25)


def test_sign_test_counts_the_outcomes_at_least_as_uneven():
    for rises, falls, ties in [(5, 0, 0), (0, 5, 3), (7, 2, 1), (3, 3, 0), (4, 5, 2)]:
        num = rises + falls
        uneven = abs(rises - falls)
        outcomes = [sum(flips) for flips in itertools.product([0, 1], repeat=num)]
        expected = sum(abs(2 * heads - num) >= uneven for heads in outcomes) / 2**num
        assert sign_test([1.0] * rises + [-1.0] * falls + [0.0] * ties) == pytest.approx(expected)
    assert sign_test([0.0, 0.0]) == 1
    assert sign_test([]) == 1
    assert 0 <= sign_test([1.0] * 3000) < 1e-300


def test_sign_test_of_very_many_rows_is_exact_and_quick():
    began = time.process_time()
    p = sign_test([1.0] * 50_300 + [-1.0] * 49_700)
    assert time.process_time() - began < 2
    assert p == pytest.approx(2 * NormalDist().cdf(-(600 - 1) / math.sqrt(100_000)), rel=1e-3)
    assert sign_test([1.0] * 5000 + [-1.0] * 5000) == 1
    assert sign_test([1.0, -1.0] * 40 + [1.0] * 9) == pytest.approx(
        2 * sum(math.comb(89, k) for k in range(41)) / 2**89, rel=1e-9
    )


def test_the_p_of_a_bootstrap_is_that_of_the_normal_law_and_never_less_than_what_was_drawn():
    drawn = np.random.default_rng(0).normal(2.0, 1.0, 200_000)
    assert bootstrap_p(2.0, drawn) == pytest.approx(2 * NormalDist().cdf(-2.0), rel=0.02)
    assert bootstrap_p(-2.0, -drawn) == bootstrap_p(2.0, drawn)
    assert bootstrap_p(0.0, np.zeros(100)) == 1
    assert bootstrap_p(1.0, np.ones(100)) == 0
    assert bootstrap_p(1.0, np.array([1.0] * 90 + [-0.01] * 10)) >= 0.2
    assert bootstrap_p(1.0, np.array([1.0, math.nan])) == 1
    assert bootstrap_p(5.0, np.random.default_rng(0).normal(5.0, 2.0, 50)) > 0.005  # no draw of 50 is below 0


def test_what_is_drawn_of_two_statistics_is_of_the_same_rows():
    values = np.arange(10.0)
    means = draws_of(lambda index_R: float(values[index_R].mean()), 10, resamples=50)
    doubled = draws_of(lambda index_R: float(2 * values[index_R].mean()), 10, resamples=50)
    np.testing.assert_allclose(doubled, 2 * means)
    interval = percentile_interval(4.5, means, confidence=0.5)
    assert interval.low == np.quantile(means, 0.25) < 4.5 < interval.high == np.quantile(means, 0.75)
