"""The best of n answers: the estimator against all choices, the bound, and what is said of it."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from luthier.evaluation.best_of_n import BestOfN, best_of, curve, kl_bound, sizes_to


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
def test_it_is_the_mean_over_all_choices_of_n_answers(n: int) -> None:
    draws = np.random.default_rng(0)
    rewards, others = draws.normal(size=7), draws.normal(size=7)
    choices = [list(choice) for choice in itertools.combinations(range(7), n)]
    assert best_of(rewards, n) == pytest.approx(np.mean([rewards[choice].max() for choice in choices]))
    chosen = [others[choice][rewards[choice].argmax()] for choice in choices]
    assert best_of(rewards, n, others) == pytest.approx(np.mean(chosen))


def test_of_equal_rewards_each_answer_is_as_likely_chosen() -> None:
    rewards, others = [1.0, 0.0, 1.0, 1.0], [3.0, 100.0, 5.0, 7.0]
    assert best_of(rewards, 4, others) == pytest.approx(5)
    assert best_of(rewards[::-1], 4, others[::-1]) == pytest.approx(5)


def test_it_has_no_bias_where_drawing_n_answers_anew_has_none() -> None:
    draws = np.random.default_rng(1)
    pool = draws.normal(size=(4000, 8))
    assert np.mean([best_of(row, 4) for row in pool]) == pytest.approx(np.mean(pool[:, :4].max(1)), abs=0.03)


def test_many_answers_do_not_overflow() -> None:
    assert best_of(list(range(2000)), 1000) == pytest.approx(2001 * 1000 / 1001 - 1)


@pytest.mark.parametrize(("n", "nats"), [(1, 0.0), (2, 0.193), (4, 0.636), (16, 1.835), (64, 3.175)])
def test_the_divergence_is_bounded(n: int, nats: float) -> None:
    assert kl_bound(n) == pytest.approx(nats, abs=5e-4)


def test_the_bound_holds_and_is_met_where_no_two_answers_are_worth_the_same() -> None:
    n, atoms = 4, 2000
    ranks = np.arange(1, atoms + 1) / atoms
    chosen = ranks**n - (ranks - 1 / atoms) ** n
    found = float((chosen * np.log(chosen * atoms)).sum())
    assert found <= kl_bound(n) + 1e-9
    assert found == pytest.approx(kl_bound(n), abs=1e-2)
    few = np.array([0.5, 0.5])
    best = np.array([0.5**n, 1 - 0.5**n])
    assert float((best * np.log(best / few)).sum()) < kl_bound(n)


def test_sizes_double_up_to_the_most() -> None:
    assert sizes_to(8) == [1, 2, 4, 8]
    assert sizes_to(12) == [1, 2, 4, 8, 12]
    assert sizes_to(1) == [1]


def test_curves_are_told_in_words_in_json_and_as_a_picture(tmp_path: Path) -> None:
    draws = np.random.default_rng(2)
    answers = [{"reward": draws.normal(size=4).tolist(), "watched": draws.normal(size=4).tolist()} for _ in range(12)]
    found = BestOfN({"base": curve(answers, 4), "tuned": curve(answers, 4)}, 12)
    base, tuned = found.tables()
    assert base.rows[0] == ["n", "KL at most (nats)", "reward", "watched"]
    assert [row[0] for row in tuned.rows[1:]] == ["1", "2", "4"]
    points = found.as_json()["best_of_n"]["tuned"]  # type: ignore[index]
    assert [point["n"] for point in points] == [1, 2, 4]
    rewards = [point["reward"]["value"] for point in points]
    assert rewards == sorted(rewards)
    assert rewards[0] == pytest.approx(np.mean([np.mean(each["reward"]) for each in answers]))
    assert points[1]["kl_bound"] == pytest.approx(math.log(2) - 0.5)
    found.write_picture(tmp_path / "best.png")
    assert (tmp_path / "best.png").read_bytes().startswith(b"\x89PNG")
