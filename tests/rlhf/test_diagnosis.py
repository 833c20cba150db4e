"""The diagnosis of rollouts: it speaks where something is wrong, and is silent where nothing is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from luthier.rlhf.diagnosis import Course, course_of, signs
from luthier.rlhf.samples import Sample

GOLD = "gold"


def rollout(
    rng: np.random.Generator,
    *,
    reward: float = 0.0,
    gold: float = 0.0,
    length: int = 20,
    per_token: float = 0.0,
    words: int = 1000,
    surprise: float = 2.0,
    nats: float = 1.0,
) -> list[Sample]:
    """64 answers around these means. per_token: what a token earns."""
    made = []
    for index in range(64):
        count = max(2, int(length * rng.uniform(0.5, 1.5)))
        engine = np.full(count, -surprise, np.float32)
        worth = reward + 0.3 * rng.standard_normal() + per_token * count
        parts = {"proxy": worth, GOLD: gold + 0.3 * rng.standard_normal()}
        made.append(
            Sample(
                index, index, "p", "a", tuple(rng.integers(0, words, count).tolist()), "stop", 0, engine, worth, parts,
                reference_T=engine - np.float32(nats / count),
            )
        )  # fmt: skip
    return made


def history(
    of_rollout: Callable[[int, np.random.Generator], list[Sample]], count: int = 12, seed: int = 0
) -> list[Course]:
    rng = np.random.default_rng(seed)
    found = [course_of(of_rollout(number, rng), [GOLD]) for number in range(count)]
    return [course for course in found if course is not None]


def kinds(courses: list[Course]) -> set[str]:
    return {sign.kind for end in range(len(courses) + 1) for sign in signs(courses[:end])}


@pytest.mark.parametrize("seed", range(10))
def test_an_honest_reward_is_met_with_silence(seed: int) -> None:
    honest = history(
        lambda n, rng: rollout(rng, reward=0.1 * n, gold=0.1 * n, length=20 + n // 2, nats=n / 2), 20, seed
    )
    assert kinds(honest) == set()


@pytest.mark.parametrize("seed", range(10))
def test_a_watched_measure_that_falls_while_the_reward_rises_is_told_before_it_has_fallen_far(seed: int) -> None:
    courses = history(lambda n, rng: rollout(rng, reward=0.1 * n, gold=0.1 * min(n, 16 - n)), 20, seed)
    first = next(end for end in range(21) if any(sign.kind == "watched measure" for sign in signs(courses[:end])))
    assert 8 < first <= 16


def test_a_measure_that_falls_with_the_reward_is_no_hacking() -> None:
    assert "watched measure" not in kinds(history(lambda n, rng: rollout(rng, reward=-0.1 * n, gold=-0.1 * n)))


def test_answers_that_grow_with_what_length_earns_are_told() -> None:
    growing = history(lambda n, rng: rollout(rng, length=20 + 5 * n, per_token=0.05))
    assert "length" in kinds(growing)
    needed = history(lambda n, rng: rollout(rng, reward=0.1 * n, gold=0.1 * n, length=20 + 5 * n))
    assert "length" not in kinds(needed)


def test_answers_that_repeat_themselves_are_told() -> None:
    assert "repetition" in kinds(history(lambda n, rng: rollout(rng, words=1000 if n < 6 else 2)))


def test_a_policy_that_is_sure_of_everything_and_earns_nothing_by_it_is_told() -> None:
    assert "certainty" in kinds(history(lambda n, rng: rollout(rng, surprise=2.0 / (1 + n))))
    rightly = history(lambda n, rng: rollout(rng, surprise=2.0 / (1 + n), reward=0.2 * n, gold=0.2 * n))
    assert "certainty" not in kinds(rightly)


def test_reward_models_that_agree_no_more_are_told() -> None:
    def spread(n: int, rng: np.random.Generator, grows: float) -> list[Sample]:
        return [replace(each, spreads={"kind": 0.2 + grows * n + 0.05 * rng.random()}) for each in rollout(rng)]

    assert kinds(history(lambda n, rng: spread(n, rng, 0.01))) == set()
    assert kinds(history(lambda n, rng: spread(n, rng, 0.05))) == {"disagreement"}


def test_a_policy_far_from_the_reference_is_told() -> None:
    assert "divergence" in kinds(history(lambda n, rng: rollout(rng, nats=4.0 * n)))


def test_a_few_rollouts_tell_nothing_and_words_tell_the_mend() -> None:
    courses = history(lambda n, rng: rollout(rng, nats=40.0), 8)
    assert signs(courses[:7]) == []
    (sign,) = signs(courses)
    assert "objective.kl" in sign.words


def test_answers_without_rewards_are_no_course() -> None:
    assert course_of([], [GOLD]) is None
