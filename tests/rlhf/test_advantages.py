"""Advantages against what defines them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.rlhf.advantages import centred, gae, group_relative, leave_one_out, rewards_to_go, whitened

numbers = st.lists(st.floats(-5, 5), min_size=1, max_size=8).map(np.array)


def brute_gae(reward: np.ndarray, value: np.ndarray, gamma: float, lam: float) -> np.ndarray:
    """A_t = Σ_k (γλ)^k δ_{t+k}, each δ by its definition."""
    after = [*value[1:], 0.0]
    delta = [r + gamma * v2 - v for r, v2, v in zip(reward, after, value, strict=True)]
    count = len(delta)
    return np.array([sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, count)) for t in range(count)])


@settings(max_examples=50, deadline=None)
@given(numbers, st.floats(0.1, 1), st.floats(0, 1), st.randoms(use_true_random=False))
def test_gae_is_the_double_sum(reward: np.ndarray, gamma: float, lam: float, random: object) -> None:
    value = np.array([random.uniform(-3, 3) for _ in reward])  # type: ignore[attr-defined]
    advantage, returns = gae(reward, value, gamma, lam)
    np.testing.assert_allclose(advantage, brute_gae(reward, value, gamma, lam), atol=1e-10)
    np.testing.assert_allclose(returns, advantage + value, atol=1e-12)


def test_gae_by_hand() -> None:
    advantage, _ = gae(np.array([0, 0, 1.0]), np.array([0.2, 0.4, 0.6]), 1, 0.95)
    np.testing.assert_allclose(advantage, [0.751, 0.58, 0.4], atol=1e-12)
    advantage, _ = gae(np.array([-0.01, 0.02, 1]), np.array([0.5, 0.1, -0.2]), 0.99, 0.95)
    np.testing.assert_allclose(advantage, [0.3889893, 0.8506, 1.2], atol=1e-12)


def test_at_lambda_one_returns_do_not_depend_on_values() -> None:
    reward = np.array([0.3, -1, 2.0])
    for value in (np.zeros(3), np.array([5.0, -2, 1])):
        _, returns = gae(reward, value, 1, 1)
        np.testing.assert_allclose(returns, rewards_to_go(reward), atol=1e-12)


def test_at_lambda_zero_an_advantage_is_one_step_ahead() -> None:
    advantage, _ = gae(np.array([1.0, 2]), np.array([0.5, 0.25]), 0.9, 0)
    np.testing.assert_allclose(advantage, [1 + 0.9 * 0.25 - 0.5, 2 - 0.25])


@given(numbers)
def test_relative_rewards_sum_to_zero(reward: np.ndarray) -> None:
    for of_group in (centred, group_relative, leave_one_out):
        assert abs(of_group(reward).sum()) < 1e-6


def test_groups_by_hand() -> None:
    reward = np.array([1.0, 0, 0, 1, 0, 0, 0, 0])
    np.testing.assert_allclose(group_relative(reward)[:2], [1.61984, -0.53995], atol=1e-5)
    np.testing.assert_allclose(leave_one_out(reward)[:2], [0.857143, -0.285714], atol=1e-6)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8).map(np.array))
def test_leave_one_out_is_the_mean_of_the_others(reward: np.ndarray) -> None:
    others = [np.delete(reward, index).mean() for index in range(len(reward))]
    np.testing.assert_allclose(leave_one_out(reward), reward - others, atol=1e-9)


def test_equal_rewards_teach_nothing() -> None:
    for of_group in (centred, group_relative, leave_one_out):
        assert not of_group(np.full(4, 0.7)).any()


def test_an_answer_without_a_reward_counts_nowhere() -> None:
    with_gap = np.array([1.0, np.nan, 0, 0.5])
    kept = [0, 2, 3]
    for of_group in (centred, group_relative, leave_one_out):
        found = of_group(with_gap)
        assert found[1] == 0
        np.testing.assert_allclose(found[kept], of_group(with_gap[kept]))


@pytest.mark.parametrize("of_group", [centred, group_relative, leave_one_out])
def test_one_answer_alone_or_none_with_a_reward_teaches_nothing(of_group) -> None:  # type: ignore[no-untyped-def]
    assert of_group(np.array([3.0])).tolist() == [0]
    assert of_group(np.array([np.nan, np.nan])).tolist() == [0, 0]


def test_a_scale_of_rewards_leaves_group_advantages_alone_and_stretches_the_others() -> None:
    reward = np.array([0.1, 0.9, 0.4])
    np.testing.assert_allclose(group_relative(10 * reward + 3), group_relative(reward), rtol=1e-3)
    np.testing.assert_allclose(leave_one_out(10 * reward + 3), 10 * leave_one_out(reward), atol=1e-9)


def test_whitened_numbers_have_mean_zero_and_variance_one_over_all_answers() -> None:
    first, second = whitened([np.array([1.0, 2]), np.array([3.0, 4])])
    np.testing.assert_allclose([*first, *second], [-1.161895, -0.387298, 0.387298, 1.161895], atol=1e-6)
    kept = np.concatenate(whitened([np.array([1.0, 2]), np.array([3.0, 4])], keeps_mean=True))
    assert kept.mean() == pytest.approx(2.5)
