"""BART's noise: sentences, spans of words, insertions and rotation, each against its rule."""

from __future__ import annotations

import math
from collections import Counter
from itertools import permutations
from typing import get_args

import numpy as np
import pytest
from chances import DRAWS, assert_as_likely, assert_binomial
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from luthier.corruption.infilling import (
    Replacement,
    corrupt_text,
    infilled,
    permuted_sentences,
    poisson_cumulative,
    span_lengths,
    with_insertions,
    word_starts,
)
from luthier.corruption.keyed import generator, shuffled
from luthier.types import IntArray

MASK, STOP, BEGIN, END = 1, 2, 3, 4
RANDOM = np.array([5])  # one id, so that what a random token becomes is known
REPLACEMENTS: tuple[Replacement, ...] = get_args(Replacement)
PLAIN = {"mask": 0.0, "permute": 0.0}


def corrupted(tokens: list[int], document: int = 0, **noise: object) -> list[int]:
    return corrupt_text(
        np.array(tokens),
        generator(0, 0, document),
        mask_id=MASK,
        random_ids=RANDOM,
        full_stop_ids=np.array([STOP]),
        **noise,  # type: ignore[arg-type]
    ).tolist()


def sentences_of(tokens: list[int]) -> list[tuple[int, ...]]:
    """Sentences of a text between its marks, each but the last with its full stop."""
    found: list[list[int]] = [[]]
    for token in tokens[1:-1]:
        found[-1].append(token)
        if token == STOP:
            found.append([])
    return [tuple(sentence) for sentence in found if sentence]


# ── all of it ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_noise_the_text_stays_as_it_is():
    text = [BEGIN, *range(10, 30), STOP, *range(30, 40), END]
    assert corrupted(text, **PLAIN) == text


@pytest.mark.parametrize("replace", REPLACEMENTS)
def test_the_marks_at_both_ends_stay_whatever_is_done_to_the_rest(replace: Replacement):
    text = [BEGIN, BEGIN, *range(10, 30), STOP, *range(30, 40), END]
    for document in range(50):
        noisy = corrupted(text, document, mask=0.9, insert=0.3, rotate=1.0, replace=replace, num_before=2)
        assert (noisy[:2], noisy[-1]) == ([BEGIN, BEGIN], END)
        assert not {BEGIN, END} & set(noisy[2:-1])


@pytest.mark.parametrize("inner", [[], [10], [STOP], [STOP, STOP]])
def test_a_text_may_be_empty_or_a_full_stop(inner: list[int]):
    noisy = corrupted([BEGIN, *inner, END], permute=1.0, mask=0.0, rotate=1.0)
    assert sorted(noisy) == sorted([BEGIN, *inner, END])
    assert corrupted([BEGIN, *inner, END], mask=1.0, poisson=None) == [BEGIN, *[MASK] * len(inner), END]


# ── sentences ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_sentences_are_kept_whole_and_come_in_every_order_as_likely():
    text = [BEGIN, 10, 11, STOP, 20, STOP, 30, 31, 32, STOP, 40, STOP, END]
    draw_of = Counter(tuple(sentences_of(corrupted(text, document, mask=0.0))) for document in range(DRAWS))
    assert set(draw_of) == set(permutations(sentences_of(text)))
    assert_as_likely(list(draw_of.values()))


def test_the_last_sentence_needs_no_full_stop_and_moves_too():
    text = [BEGIN, 10, STOP, 20, 21, END]
    assert {tuple(corrupted(text, d, mask=0.0)) for d in range(30)} == {tuple(text), (BEGIN, 20, 21, 10, STOP, END)}


def test_a_share_of_the_sentences_moves_and_the_others_stay():
    is_stop = np.arange(40) % 4 == 3
    starts = np.arange(0, 40, 4)
    moved: list[int] = []
    for document in range(300):
        order = permuted_sentences(is_stop, 0.25, generator(0, 0, document))
        assert sorted(order.tolist()) == list(range(40))
        moved.append(int((order[starts] != starts).sum()))
    assert max(moved) == math.ceil(0.25 * 10)


def test_a_full_stop_after_a_full_stop_ends_no_sentence():
    """The second stop of a run begins the next sentence; at the very end it stays where it is."""
    orders = {
        tuple(permuted_sentences(np.array([False, True, True, False, True, True]), 1.0, generator(0, 0, d)).tolist())
        for d in range(30)
    }
    assert orders == {(0, 1, 2, 3, 4, 5), (2, 3, 4, 0, 1, 5)}


# ── lengths of spans ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mean", [0.5, 3.0, 3.5, 20.0])
def test_lengths_are_poisson(mean: float):
    lengths = span_lengths(int(40_000 * mean), mean, generator(0, 0, 0))
    probabilities = [math.exp(-mean) * mean**k / math.factorial(k) for k in range(60)]
    enough = [k for k in range(60) if probabilities[k] * len(lengths) > 20]
    counts = np.bincount(lengths, minlength=60)
    inside = [int(counts[k]) for k in enough]
    rest = 1 - sum(probabilities[k] for k in enough)
    assert_as_likely(inside, [probabilities[k] for k in enough])
    assert_binomial(len(lengths) - sum(inside), len(lengths), max(rest, 1e-4))
    assert len(lengths) == pytest.approx(40_000, rel=0.03)


def test_cumulative_probabilities_rise_to_one_and_end_where_numbers_are_rare():
    for mean in (0.1, 3.5, 18.0, 100.0):
        cumulative = poisson_cumulative(mean)
        assert cumulative[-1] == 1.0
        assert (np.diff(cumulative) >= 0).all()
        assert len(cumulative) <= 128
    assert len(poisson_cumulative(3.5)) == 19  # 3.5¹⁸ e^−3.5 / 18! is the first below 10⁻⁷


@settings(max_examples=80, deadline=None)
@given(budget=st.integers(0, 300), mean=st.one_of(st.none(), st.floats(0.05, 30)), seed=st.integers(0, 1000))
def test_lengths_come_to_the_budget_exactly(budget: int, mean: float | None, seed: int):
    lengths = span_lengths(budget, mean, generator(seed, 0, 0))
    assert lengths.sum() == budget
    assert budget == 0 or lengths[-1] > 0


# ── hiding ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def step_by_step(
    tokens: IntArray, begins: NDArray[np.bool_], lengths: IntArray, seed: int, replace: Replacement
) -> list[int]:
    """fairseq's way: all spans walk on one token at a time, each until the words that it covers are used up."""
    draw = generator(seed, 0, 0)
    words = np.flatnonzero(begins)
    places = words[shuffled(len(words), draw)[: len(lengths)]].tolist()
    becomes = [RANDOM[0] if u < 0.5 else MASK for u in draw.random(len(lengths)).tolist()]
    left = [length - 1 for length in lengths.tolist()]
    result, gone = tokens.tolist(), set()
    for place, token in zip(places, becomes, strict=True):
        result[place] = token
        if replace == "none":
            gone.add(place)
    walking = list(range(len(lengths)))
    while walking:
        still = []
        for span in walking:
            places[span] += 1
            if places[span] == len(result):
                continue
            left[span] -= int(begins[places[span]])
            if left[span] < 0:
                continue
            still.append(span)
            if replace == "each":
                result[places[span]] = becomes[span]
            else:
                gone.add(places[span])
        walking = still
    return [token for place, token in enumerate(result) if place not in gone]


@pytest.mark.parametrize("replace", REPLACEMENTS)
@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10_000), length=st.integers(1, 60), share=st.floats(0.05, 1.0))
def test_spans_are_hidden_as_fairseq_hides_them(replace: Replacement, seed: int, length: int, share: float):
    shape = np.random.Generator(np.random.Philox(seed))
    begins = shape.random(length) < 0.6
    tokens = np.arange(10, 10 + length)
    lengths = span_lengths(math.ceil(share * begins.sum()), 2.5, generator(seed, 1, 0))
    lengths = lengths[lengths > 0]
    expected = step_by_step(tokens, begins, lengths, seed, replace)
    noisy = infilled(tokens, begins, lengths, generator(seed, 0, 0), MASK, RANDOM, 0.5, replace)
    assert noisy.tolist() == expected
    assert tokens.tolist() == list(range(10, 10 + length))


def test_one_word_spans_leave_a_mask_for_each_word_of_the_budget():
    words = np.repeat(np.arange(40), 1 + np.arange(40) % 3)
    text = [BEGIN, *range(100, 100 + len(words)), END]
    of_text = np.concatenate([[-1], words, [-1]])
    for document in range(30):
        noisy = corrupted(text, document, mask=0.3, poisson=None, random=0.0, permute=0.0, words_T=of_text)
        assert noisy.count(MASK) == math.ceil(0.3 * 40) == 12
        kept = [token - 100 for token in noisy[1:-1] if token != MASK]
        whole = Counter(words[kept].tolist())
        assert all(count == 1 + word % 3 for word, count in whole.items())  # words go whole
        assert len(whole) == 28
        assert kept == sorted(kept)


def test_masks_are_as_many_as_spans_and_insertions_where_spans_do_not_meet():
    tokens, begins = np.arange(10, 10_010), np.ones(10_000, dtype=np.bool_)
    lengths = np.array([3, 1, 4, 2])
    alone = 0
    for document in range(30):
        noisy = infilled(tokens, begins, lengths, generator(0, 0, document), MASK, RANDOM, 0.0, "one")
        hidden = set(range(10, 10_010)) - set(noisy.tolist())
        alone += len(hidden) == 10
        assert (noisy == MASK).sum() == 4 or len(hidden) < 10
        longer = with_insertions(noisy, 7, generator(0, 0, document), MASK, RANDOM, 0.0)
        assert (longer == MASK).sum() == (noisy == MASK).sum() + 7
    assert alone >= 25


def test_the_share_of_random_spans_is_as_asked():
    tokens, begins = np.arange(10, 2010), np.ones(2000, dtype=np.bool_)
    became = np.concatenate(
        [
            infilled(tokens, begins, np.ones(200, dtype=np.int64), generator(0, 0, d), MASK, RANDOM, 0.1, "one")
            for d in range(DRAWS // 200)
        ]
    )
    assert (became == MASK).sum() + (became == RANDOM[0]).sum() == DRAWS
    assert_binomial(int((became == RANDOM[0]).sum()), DRAWS, 0.1)


def test_every_word_is_hidden_as_often():
    text = list(range(10, 60))
    hidden: Counter[int] = Counter()
    for document in range(1500):
        hidden.update(set(text) - set(corrupted(text, document, poisson=None, permute=0.0, num_before=0, num_after=0)))
    assert_as_likely([hidden[token] for token in text])


def test_sentences_move_before_words_are_hidden():
    """A word that begins a sentence stays a word of its own wherever the sentence comes to stand."""
    text = [BEGIN, 10, 11, STOP, 20, 21, STOP, END]
    words = np.array([-1, 0, 0, 1, 2, 2, 3, -1])
    seen = {tuple(corrupted(text, d, mask=0.25, poisson=None, random=0.0, words_T=words)) for d in range(200)}
    assert (BEGIN, MASK, STOP, 10, 11, STOP, END) in seen
    assert (BEGIN, 20, 21, STOP, 10, 11, MASK, END) in seen
    assert len(seen) == 8


# ── insertions and rotation ─────────────────────────────────────────────────────────────────────────────────────────


def test_insertions_stand_anywhere_and_leave_the_text_in_order():
    counts: Counter[int] = Counter()
    for document in range(DRAWS):
        (place,) = np.flatnonzero(
            with_insertions(np.arange(10, 14), 1, generator(0, 0, document), MASK, RANDOM, 0.0) == MASK
        )
        counts[int(place)] += 1
    assert_as_likely([counts[place] for place in range(5)])
    longer = with_insertions(np.arange(10, 40), 25, generator(0, 0, 0), MASK, RANDOM, 0.1)
    assert longer[longer >= 10].tolist() == list(range(10, 40))
    assert ((longer == RANDOM[0]).sum(), (longer == MASK).sum()) == (math.ceil(0.1 * 25), 22)


def test_the_share_of_insertions_counts_the_whole_text():
    text = [BEGIN, *range(10, 38), END]
    noisy = corrupted(text, **PLAIN, insert=0.1, random=0.0)
    assert noisy.count(MASK) == 3
    assert [token for token in noisy if token != MASK] == text


def test_a_rotated_text_begins_at_any_token_as_likely():
    text = [BEGIN, *range(10, 15), END]
    begins: Counter[int] = Counter()
    for document in range(20_000):
        noisy = corrupted(text, document, **PLAIN, rotate=0.75)
        inner = noisy[1:-1]
        at = inner.index(10)
        assert inner[at:] + inner[:at] == list(range(10, 15))
        begins[inner[0]] += 1
    turned = 0.75 / 5
    assert_as_likely([begins[token] for token in range(10, 15)], [0.25 + turned, turned, turned, turned, turned])


def test_words_begin_where_their_index_changes():
    assert word_starts(np.arange(5), np.array([0, 0, 1, 1, 0])).tolist() == [True, False, True, False, True]
    assert word_starts(np.arange(3), None).all()
