"""Masked tokens: how many are chosen, which, and what becomes of them."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from chances import assert_as_likely, assert_binomial
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.corruption.keyed import generator
from luthier.corruption.masking import Sampler, mask_tokens, units_of
from luthier.types import IntArray

SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
MASK = 1
RANDOM = np.arange(5000, 5050)  # none of them in a text
LENGTH = 512
TEXT = np.arange(100, 100 + LENGTH)
MASKABLE = np.ones(LENGTH, dtype=np.bool_)
MASKABLE[[0, 200, LENGTH - 1]] = False
WORDS = np.cumsum(np.random.Generator(np.random.Philox(1)).random(LENGTH) < 0.6)
TEXTS = 400

MASKED = {
    (sampler, whole): [
        mask_tokens(
            TEXT,
            MASKABLE,
            generator(0, 0, document),
            mask_id=MASK,
            random_ids=RANDOM,
            sampler=sampler,
            words_T=WORDS if whole else None,
        )
        for document in range(TEXTS)
    ]
    for sampler in SAMPLERS
    for whole in (False, True)
}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS)
every_way = pytest.mark.parametrize(("sampler", "whole"), MASKED)


@every_way
def test_of_the_chosen_tokens_80_percent_are_masked_10_random_and_10_kept(sampler: Sampler, whole: bool):
    became = np.concatenate([inputs[chosen] for inputs, chosen in MASKED[sampler, whole]])
    was = np.concatenate([TEXT[chosen] for _, chosen in MASKED[sampler, whole]])
    is_random = np.isin(became, RANDOM)
    counts = [int((became == MASK).sum()), int(is_random.sum()), int((became == was).sum())]
    assert sum(counts) == len(became)
    assert_as_likely(counts, [0.8, 0.1, 0.1])
    assert_as_likely(np.bincount(became[is_random] - RANDOM[0], minlength=len(RANDOM)).tolist())


@every_way
def test_nothing_else_changes_and_nothing_that_must_not_be_is_chosen(sampler: Sampler, whole: bool):
    for inputs, chosen in MASKED[sampler, whole]:
        assert MASKABLE[chosen].all()
        assert (np.diff(chosen) > 0).all()
        others = np.setdiff1d(np.arange(LENGTH), chosen)
        assert (inputs[others] == TEXT[others]).all()


@every_way
def test_every_maskable_token_is_chosen_as_often(sampler: Sampler, whole: bool):
    counts = np.bincount(np.concatenate([chosen for _, chosen in MASKED[sampler, whole]]), minlength=LENGTH)
    if whole:  # one token stands for its word; the exact sampler passes over longer words more often
        units_T, _ = units_of(MASKABLE, WORDS)
        _, first = np.unique(np.where(MASKABLE, units_T, LENGTH), return_index=True)
        counts = counts[first[:-1]]
        if sampler == "exact":
            assert counts.min() > 0
            return
    else:
        counts = counts[MASKABLE]
    assert_as_likely(counts.tolist())


@every_sampler
def test_a_word_is_chosen_whole_or_not_at_all(sampler: Sampler):
    units_T, _ = units_of(MASKABLE, WORDS)
    for _, chosen in MASKED[sampler, True]:
        assert set(np.flatnonzero(np.isin(units_T, units_T[chosen])).tolist()) == set(chosen.tolist())


def test_the_number_that_bernoulli_chooses_is_binomial_in_tokens_and_in_words():
    per_text = [len(chosen) for _, chosen in MASKED["bernoulli", False]]
    assert_binomial(sum(per_text), TEXTS * int(MASKABLE.sum()), 0.15)
    assert len(set(per_text)) > 10
    units_T, num_words = units_of(MASKABLE, WORDS)
    words = sum(len(np.unique(units_T[chosen])) for _, chosen in MASKED["bernoulli", True])
    assert_binomial(words, TEXTS * num_words, 0.15)


def test_exact_chooses_its_number_always_and_with_words_never_more():
    assert {len(chosen) for _, chosen in MASKED["exact", False]} == {round(0.15 * LENGTH)}
    sizes = np.bincount(units_of(MASKABLE, WORDS)[0][MASKABLE])
    units_T, _ = units_of(MASKABLE, WORDS)
    for _, chosen in MASKED["exact", True]:
        missing = round(0.15 * LENGTH) - len(chosen)
        left = np.delete(sizes, np.unique(units_T[chosen]))
        assert missing == 0 or left.min() > missing > 0  # only words that did not fit were passed over


@pytest.mark.parametrize(
    ("length", "most", "count"),
    [(3, None, 1), (10, None, 2), (30, None, 4), (512, None, 77), (512, 20, 20), (100, 20, 15)],
)
def test_the_exact_number_is_the_published_one(length: int, most: int | None, count: int):
    maskable = np.ones(length, dtype=np.bool_)
    maskable[[0, -1]] = False  # they count for the number all the same
    _, chosen = mask_tokens(
        np.arange(length), maskable, generator(0, 0, 0), mask_id=MASK, random_ids=9, sampler="exact", most=most
    )
    assert len(chosen) == count


def test_exact_chooses_all_there_are_where_there_are_too_few():
    maskable = np.zeros(512, dtype=np.bool_)
    maskable[[5, 9]] = True
    _, chosen = mask_tokens(TEXT, maskable, generator(0, 0, 0), mask_id=MASK, random_ids=9, sampler="exact")
    assert chosen.tolist() == [5, 9]


@pytest.mark.parametrize("whole", [False, True])
def test_the_stochastic_count_is_one_of_two_neighbours_and_right_on_average(whole: bool):
    units_T, num_units = units_of(MASKABLE, WORDS if whole else None)
    counts = [len(np.unique(units_T[chosen])) for _, chosen in MASKED["stochastic-count", whole]]
    expected = 0.15 * num_units
    low = math.floor(expected)
    assert set(counts) == {low, low + 1}
    assert_binomial(sum(counts) - TEXTS * low, TEXTS, expected - low)


def test_words_end_where_the_index_changes_and_at_what_is_not_maskable():
    words = np.array([0, 0, 0, 1, 2, 2, -1, 0, 0, 1])
    maskable = np.array([False, True, True, True, True, True, False, True, True, True])
    units_T, num_units = units_of(maskable, words)
    assert units_T.tolist() == [-1, 0, 0, 1, 2, 2, -1, 3, 3, 4]
    assert num_units == 5
    of_a_pair = units_of(np.array([True, True, False, True]), np.array([0, 1, 1, 1]))
    assert of_a_pair[0].tolist() == [0, 1, -1, 2]


@pytest.mark.parametrize("sampler", ["bernoulli", "stochastic-count"])
@pytest.mark.parametrize("words", [None, np.array([0, 0, 1, 2, 2, 2])])
def test_a_short_text_may_have_none_chosen_unless_one_is_asked_for(sampler: Sampler, words: IntArray | None):
    counts = {False: [], True: []}
    firsts = []
    maskable = np.ones(6, dtype=np.bool_)
    for document in range(1000):
        for at_least_one in (False, True):
            _, chosen = mask_tokens(
                np.arange(6),
                maskable,
                generator(0, 0, document),
                mask_id=9,
                random_ids=9,
                rate=0.02,
                sampler=sampler,
                words_T=words,
                at_least_one=at_least_one,
            )
            counts[at_least_one].append(len(chosen))
        firsts.append(int(chosen[0]))
    assert min(counts[False]) == 0
    assert min(counts[True]) >= 1
    units_T, num_units = units_of(maskable, words)
    likely = np.bincount(units_T[firsts], minlength=num_units)
    assert likely.min() > 0.7 * 1000 / num_units


def test_where_nothing_is_maskable_nothing_is_chosen():
    nothing = np.zeros(4, dtype=np.bool_)
    for sampler in SAMPLERS:
        for words in (None, np.arange(4)):
            inputs, chosen = mask_tokens(
                np.arange(4),
                nothing,
                generator(0, 0, 0),
                mask_id=9,
                random_ids=9,
                sampler=sampler,
                words_T=words,
                at_least_one=True,
            )
            assert (inputs.tolist(), len(chosen)) == ([0, 1, 2, 3], 0)


def test_shares_and_random_tokens_are_as_asked():
    def masked(mask_share: float, random_share: float, random_ids: int | IntArray) -> IntArray:
        inputs, chosen = mask_tokens(
            TEXT,
            MASKABLE,
            generator(0, 0, 0),
            mask_id=MASK,
            random_ids=random_ids,
            rate=1.0,
            mask_share=mask_share,
            random_share=random_share,
        )
        return inputs[chosen]

    assert set(masked(1.0, 0.0, 9).tolist()) == {MASK}
    assert (masked(0.0, 0.0, 9) == TEXT[MASKABLE]).all()
    assert set(masked(0.0, 1.0, 3).tolist()) == {0, 1, 2}
    assert set(masked(0.0, 1.0, np.array([7, 8])).tolist()) == {7, 8}


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(0, 40),
    seed=st.integers(0, 1000),
    sampler=st.sampled_from(SAMPLERS),
    whole=st.booleans(),
    rate=st.floats(0.01, 0.99),
)
def test_any_text_can_be_masked(length: int, seed: int, sampler: Sampler, whole: bool, rate: float):
    draw = np.random.Generator(np.random.Philox(seed))
    maskable, words = draw.random(length) < 0.7, np.cumsum(draw.random(length) < 0.5)
    text = np.arange(length)
    _, chosen = mask_tokens(
        text,
        maskable,
        generator(seed, 0, 0),
        mask_id=99,
        random_ids=5,
        rate=rate,
        sampler=sampler,
        words_T=words if whole else None,
        at_least_one=True,
    )
    assert maskable[chosen].all()
    assert (len(chosen) > 0) == maskable.any()
    assert (text == np.arange(length)).all()  # the text itself stays as it was
