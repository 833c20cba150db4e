"""Agreement between judges and between rankings."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from luthier.evaluation.judged.agreement import agreement, cohen_kappa, fleiss_kappa, kendall_tau


def test_cohens_kappa_of_his_kind_of_table() -> None:
    """Two judges on 50 grant proposals: yes and yes 20, yes and no 5, no and yes 10, no and no 15; p_o 0.7, p_e 0.5."""
    left = ["yes"] * 25 + ["no"] * 25
    right = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(left, right) == pytest.approx(0.4)


@pytest.mark.parametrize("seed", range(8))
def test_cohens_kappa_is_agreement_beyond_that_of_all_pairs_of_items(seed: int) -> None:
    """What is expected by chance is how often an item's verdict is another item's by the other judge, all pairs counted."""
    generator = np.random.default_rng(seed)
    left = generator.integers(3, size=40)
    right = np.where(generator.random(40) < 0.5, left, generator.integers(3, size=40))
    chance = (left[:, None] == right[None, :]).mean()
    expected = ((left == right).mean() - chance) / (1 - chance)
    assert cohen_kappa(left.tolist(), right.tolist()) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_kendalls_tau_counts_pairs_in_the_same_and_in_the_other_order(seed: int) -> None:
    left, right = np.random.default_rng(seed).integers(5, size=(2, 12)).tolist()
    same = other = left_tied = right_tied = 0
    for i, j in itertools.combinations(range(12), 2):
        product = (left[i] - left[j]) * (right[i] - right[j])
        same, other = same + (product > 0), other + (product < 0)
        left_tied, right_tied = left_tied + (left[i] == left[j]), right_tied + (right[i] == right[j])
    pairs = 12 * 11 / 2
    expected = (same - other) / math.sqrt((pairs - left_tied) * (pairs - right_tied))
    assert kendall_tau(left, right) == pytest.approx(expected, abs=1e-12)
    assert kendall_tau(left, [-value for value in left]) == pytest.approx(-1)


def test_fleiss_kappa_of_the_paper_s_example() -> None:
    """Fleiss 1971, table 1: 30 patients, 6 psychiatrists, 5 diagnoses, κ = 0.430."""
    rows = """
    0 0 0 6 0 / 0 3 0 0 3 / 0 1 4 0 1 / 0 0 0 0 6 / 0 3 0 3 0 / 2 0 4 0 0 / 0 0 4 0 2 / 2 0 3 1 0 / 2 0 0 4 0 / 0 0 0 0 6
    1 0 0 5 0 / 1 1 0 4 0 / 0 3 3 0 0 / 1 0 0 5 0 / 0 2 0 3 1 / 0 0 5 0 1 / 3 0 0 1 2 / 5 1 0 0 0 / 0 2 0 4 0 / 1 0 2 0 3
    0 0 0 0 6 / 0 1 0 5 0 / 0 2 0 1 3 / 2 0 0 4 0 / 1 0 0 4 1 / 0 5 0 1 0 / 4 0 0 0 2 / 0 2 0 4 0 / 1 0 5 0 0 / 0 0 0 0 6
    """
    counts = np.array([[int(n) for n in row.split()] for line in rows.strip().splitlines() for row in line.split("/")])
    assert counts.shape == (30, 5)
    assert fleiss_kappa(counts) == pytest.approx(0.430, abs=5e-4)


def test_judges_who_always_agree_have_kappa_one_and_a_constant_order_has_no_tau() -> None:
    assert cohen_kappa([1, 1], [1, 1]) == 1
    assert cohen_kappa(["a", "b"], ["a", "b"]) == 1
    assert agreement([1, 2, 3, 4], [1, 2, 0, 0]) == 0.5
    assert fleiss_kappa(np.array([[2, 0], [2, 0]])) == 1
    assert kendall_tau([1, 1, 1], [1, 2, 3]) == 0
