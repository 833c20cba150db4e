"""Environments whose best policy is known (`bench.toys`): each algorithm comes to within 5 % of the best."""

from __future__ import annotations

import pytest

from bench.toys import ENVIRONMENTS, answers_of, is_solved, solve


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "steps"), [("one of four", "rloo", 150), ("when to stop", "grpo", 150), ("copy", "ppo", 60)]
)
def test_an_algorithm_finds_the_best_policy(name: str, kind: str, steps: int) -> None:
    found = solve(name, kind, seed=0, steps=steps)
    assert is_solved(found), found


def test_all_answers_are_gone_through_once() -> None:
    for environment in ENVIRONMENTS.values():
        answers = answers_of(environment.length)
        assert len(set(answers)) == len(answers) == sum(5**n for n in range(environment.length)) + 5**environment.length
