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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("told", "most"),
    [
        pytest.param("[-one for one in worth]", 0.05, id="the worst for the best"),
        pytest.param("worth[1:] + worth[:1]", 0.35, id="another answer's"),
    ],
)
def test_with_rewards_that_are_not_the_answers_own_the_best_policy_is_not_found(told: str, most: float) -> None:
    found = solve("one of four", "rloo", seed=0, steps=80, told=told)
    assert 0 <= found["reward"] <= most, found


def test_all_answers_are_gone_through_once() -> None:
    for environment in ENVIRONMENTS.values():
        answers = answers_of(environment.length)
        assert len(set(answers)) == len(answers) == sum(5**n for n in range(environment.length)) + 5**environment.length
