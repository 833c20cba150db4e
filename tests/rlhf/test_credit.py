"""What each algorithm has the tokens of a rollout learned by."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from luthier.rlhf import ALGORITHMS, GRPO, PPO, RAFT, RLOO, OnlineDPO, ReinforcePlusPlus
from luthier.rlhf.advantages import gae
from luthier.rlhf.contract import RolloutObjective
from luthier.rlhf.experience import chunks_within, example_of
from luthier.rlhf.samples import Sample, sample_of
from luthier.types import Example, Origin, Part

REWARDS = [{"grader": {"type": "length", "most": 5}}]
SCORES = (1.0, 0.0, 0.0, 1.0)


def sample(number: int, reward: float | None = None, group: int = 0, length: int | None = None) -> Sample:
    length = 2 + number % 3 if length is None else length
    own = -np.arange(1, length + 1, dtype=np.float32) / 4
    return Sample(
        group, group, "p", f"answer {number}", tuple(range(number, number + length)), "stop", 3, own, reward,
        old_T=own, reference_T=own - np.float32(0.5), value_T=np.full(length, 0.25, np.float32),
    )  # fmt: skip


GROUP = [sample(number, reward) for number, reward in enumerate(SCORES)]


def algorithm(kind: type[RolloutObjective], **settings: object) -> RolloutObjective:
    return kind.model_validate({"rewards": REWARDS, **settings})


def first(given: list, name: str = "advantage") -> list[float]:  # type: ignore[type-arg]
    return [float(each[name][0]) for each in given]


def test_a_sample_is_the_same_after_it_was_kept() -> None:
    own = replace(GROUP[0], parts={"right": 1.0, "short": None}, fault=None)
    again = sample_of(own.line())
    assert again.line() == own.line()
    np.testing.assert_array_equal(again.old_T, own.old_T)
    assert again.old_T is not None
    assert again.old_T.dtype == np.float32


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_every_token_has_what_the_loss_asks_for(kind: type[RolloutObjective]) -> None:
    objective = algorithm(kind)
    for each, own in zip(GROUP, objective.credit(GROUP, 0.1), strict=True):
        assert all(value.shape == (each.num_tokens,) and value.dtype == np.float32 for value in own.values())


def test_grpo_compares_within_a_prompt() -> None:
    rewards = np.array(SCORES)
    expected = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(first(algorithm(GRPO).credit(GROUP, 0)), expected, rtol=1e-6)
    np.testing.assert_allclose(first(algorithm(GRPO, scale="none").credit(GROUP, 0)), rewards - 0.5, rtol=1e-6)
    other = [sample(number, 10 * reward, group=1) for number, reward in enumerate(SCORES)]
    both = first(algorithm(GRPO).credit([*GROUP, *other], 0))
    np.testing.assert_allclose(both[:4], both[4:], rtol=1e-3)  # each prompt has a scale of its own
    batch = first(algorithm(GRPO, scale="batch").credit([*GROUP, *other], 0))
    np.testing.assert_allclose(np.array(batch[4:]) / batch[:4], 10, rtol=1e-6)


def test_grpo_divides_by_tokens_by_answers_or_by_the_longest() -> None:
    lengths = [each.num_tokens for each in GROUP]
    for reduction, weight, divisor in (
        ("token", [1.0] * 4, sum(lengths)),
        ("answer", [1 / length for length in lengths], 4),
        ("constant", [1 / 128] * 4, 4),
    ):
        objective = algorithm(GRPO, reduction=reduction)
        assert [objective.token_weight(each) for each in GROUP] == pytest.approx(weight)
        assert objective.divisor(GROUP) == divisor


def test_answers_near_the_limit_are_punished_by_how_near_they_are() -> None:
    objective = algorithm(GRPO, scale="none", max_new_tokens=8, overlong=4)
    answers = [sample(0, 0.0, length=length) for length in (4, 6, 8)]
    punished = np.array([0, -0.5, -1.0])
    np.testing.assert_allclose(first(objective.credit(answers, 0)), punished - punished.mean(), atol=1e-6)


def test_rloo_pays_for_the_distance_and_leaves_one_out() -> None:
    paid = [0.1 * 0.5 * each.num_tokens for each in GROUP]
    worth = np.array(SCORES) - paid
    others = [np.delete(worth, index).mean() for index in range(4)]
    np.testing.assert_allclose(first(algorithm(RLOO).credit(GROUP, 0.1)), worth - others, rtol=1e-5)


def test_reinforce_plus_plus_whitens_returns_over_all_tokens() -> None:
    given = algorithm(ReinforcePlusPlus).credit(GROUP, 0.1)
    every = np.concatenate([each["advantage"] for each in given])
    assert every.mean() == pytest.approx(0, abs=1e-6)
    assert every.std(ddof=1) == pytest.approx(1, rel=1e-4)
    # a later token pays for fewer tokens, so it has the higher return
    assert all((np.diff(each["advantage"]) > 0).all() for each in given)


def test_ppo_puts_the_reward_on_the_last_token_and_estimates() -> None:
    objective = algorithm(PPO, whiten_advantages=False)
    given = objective.credit(GROUP, 0.2)
    for each, own in zip(GROUP, given, strict=True):
        reward = np.full(each.num_tokens, -0.2 * 0.5)
        reward[-1] += each.reward or 0
        advantage, returns = gae(reward, np.full(each.num_tokens, 0.25), 1.0, 0.95)
        np.testing.assert_allclose(own["advantage"], advantage, rtol=1e-5)
        np.testing.assert_allclose(own["return"], returns, rtol=1e-5)


def test_ppo_moves_the_pull_towards_its_target() -> None:
    objective = algorithm(PPO, kl_target=1.0, kl_horizon=100)
    at = [replace(sample(0, 0.0, length=2)) for _ in range(4)]  # log π / π_ref sums to 1 in each
    assert objective.kl_after(0.3, at) == pytest.approx(0.3)
    far = [sample(0, 0.0, length=4) for _ in range(4)]  # to 2
    assert objective.kl_after(0.3, far) == pytest.approx(0.3 * (1 + 0.2 * 4 / 100))
    assert algorithm(PPO).kl_after(0.3, far) == 0.3


def test_raft_learns_the_best_and_online_dpo_the_best_against_the_worst() -> None:
    group = [sample(n, r) for n, r in enumerate((0.2, 0.9, None, 0.9, -1.0))]
    assert [each.text for each in algorithm(RAFT).learned(group)] == ["answer 1"]
    assert [each.text for each in algorithm(RAFT, num_best=3).learned(group)] == ["answer 1", "answer 3", "answer 0"]
    assert algorithm(RAFT, least=1.0).learned(group) == []
    assert [each.text for each in algorithm(OnlineDPO).learned(group)] == ["answer 1", "answer 4"]
    assert algorithm(OnlineDPO).learned([sample(0, 0.5), sample(1, 0.5)]) == []


# ── experience ──────────────────────────────────────────────────────────────────────────────────────────────────────

PROMPT = Example((Part(np.array([7, 8, 9])),), *[np.zeros(0, np.int64)] * 2, np.zeros(0, np.float32), np.zeros(0, np.int64), 0, Origin("p", 1))  # fmt: skip


def test_a_prompt_stands_once_and_each_answer_is_read_from_its_end_on() -> None:
    example = example_of(PROMPT, GROUP[:2], [{"a": np.arange(each.num_tokens)} for each in GROUP[:2]], [1.0, 0.5], 4)
    tokens = np.concatenate([part.tokens_T for part in example.parts])
    assert tokens.tolist() == [7, 8, 9, 0, 1, 1, 2, 3]
    assert example.source_N.tolist() == [2, 3, 2, 5, 6]
    assert example.token_N.tolist() == [0, 1, 1, 2, 3]
    assert example.sample_N.tolist() == [0, 0, 1, 1, 1]
    assert example.weight_N.tolist() == [1, 1, 0.5, 0.5, 0.5]
    assert example.given["a"].tolist() == [0, 1, 0, 1, 2]


def test_answers_are_parted_where_a_micro_batch_has_no_room_for_all() -> None:
    lengths = [each.num_tokens for each in GROUP]  # 2, 3, 4, 2
    assert chunks_within(PROMPT, GROUP, 3 + sum(lengths)) == [[0, 1, 2, 3]]
    assert chunks_within(PROMPT, GROUP, 3 + 5) == [[0, 1], [2], [3]]
    assert chunks_within(PROMPT, GROUP, 1) == [[0], [1], [2], [3]]
