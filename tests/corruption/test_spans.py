"""Span corruption: the published numbers, all masks as likely as each other, and the way back."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest
from chances import DRAWS, assert_as_likely, assert_binomial
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from luthier.corruption.keyed import distinct, generator
from luthier.corruption.spans import (
    corrupt_iid,
    corrupt_spans,
    cut_out,
    iid_noise_mask,
    noise_mask,
    num_noise,
    num_sentinels_needed,
    raw_length_for,
    restore,
)
from luthier.errors import DataError, RecipeError

T5 = np.arange(32_099, 31_999, -1)
MANY = np.arange(9_999, 8_999, -1)
END = 1

lengths = st.integers(2, 300)
densities = st.floats(0.01, 0.99)
means = st.floats(1.0, 80.0)
seeds = st.integers(0, 10_000)


def runs(mask_L: NDArray[np.bool_]) -> list[int]:
    """Lengths of the runs of True."""
    bordered = np.concatenate([[False], mask_L, [False]]).astype(np.int64)
    turns = np.diff(bordered)
    return (np.flatnonzero(turns == -1) - np.flatnonzero(turns == 1)).tolist()


# ── lengths and numbers ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("inputs_length", "density", "mean_length", "raw", "targets_length"),
    [
        (512, 0.15, 3, 568, 114),
        (1024, 0.15, 3, 1137, 229),
        (256, 0.15, 3, 284, 58),
        (128, 0.15, 3, 141, 29),
        (512, 0.15, 8, 588, 100),
        (512, 0.5, 3, 766, 512),
        (512, 0.5, 8, 908, 512),
        (512, 0.15, 64, 600, 92),
        (512, 0.5, 64, 1006, 512),
    ],
)
def test_texts_are_as_long_as_published(inputs_length, density, mean_length, raw, targets_length):
    assert raw_length_for(inputs_length, density, mean_length) == (raw, targets_length)
    inputs, targets = corrupt_spans(
        np.arange(raw), generator(0, 0, 0), sentinels=MANY, eos_id=END, density=density, mean_length=mean_length
    )
    assert (len(inputs), len(targets)) == (inputs_length, targets_length)


def test_568_tokens_have_85_of_noise_in_28_spans():
    assert num_noise(568, 0.15, 3.0) == (85, 28)
    mask_L = noise_mask(568, generator(0, 0, 0))
    assert (int(mask_L.sum()), len(runs(mask_L))) == (85, 28)


@settings(max_examples=80, deadline=None)
@given(inputs_length=st.integers(3, 300), density=densities, mean_length=means)
def test_no_longer_text_has_inputs_that_fit(inputs_length: int, density: float, mean_length: float):
    def inputs_of(raw: int) -> int:
        noise, spans = num_noise(raw, density, mean_length)
        return raw - noise + spans + 1

    raw, targets_length = raw_length_for(inputs_length, density, mean_length)
    noise, spans = num_noise(raw, density, mean_length)
    assert inputs_of(raw) <= inputs_length
    assert density == 0.5 or inputs_length < inputs_of(raw + 1)
    assert targets_length == noise + spans + 1


def test_at_density_one_half_targets_are_no_longer_than_inputs():
    for inputs_length in range(10, 200):
        raw, targets_length = raw_length_for(inputs_length, 0.5, 3.0)
        assert targets_length <= inputs_length, raw


def test_inputs_that_no_text_gives_are_refused():
    with pytest.raises(RecipeError, match="3 tokens or more"):
        raw_length_for(2)


# ── masks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=150, deadline=None)
@given(length=lengths, density=densities, mean_length=means, seed=seeds)
def test_a_mask_has_its_numbers_begins_with_a_kept_token_and_ends_with_noise(length, density, mean_length, seed):
    noise, spans = num_noise(length, density, mean_length)
    mask_L = noise_mask(length, generator(seed, 0, 0), density=density, mean_length=mean_length)
    assert len(mask_L) == length
    assert not mask_L[0]
    assert mask_L[-1]
    assert (int(mask_L.sum()), len(runs(mask_L))) == (noise, spans)
    assert np.mean(runs(mask_L)) == pytest.approx(noise / spans)


def test_every_mask_of_12_tokens_is_as_likely_as_the_others():
    noise, spans = num_noise(12, 0.5, 2.0)
    possible = {
        mask
        for mask in product((False, True), repeat=12)
        if sum(mask) == noise and len(runs(np.array(mask))) == spans and not mask[0] and mask[-1]
    }
    assert len(possible) == 100
    draw = generator(0, 0, 0)
    found = Counter(tuple(noise_mask(12, draw, density=0.5, mean_length=2.0).tolist()) for _ in range(DRAWS))
    assert set(found) == possible
    assert_as_likely([found[mask] for mask in possible])


@settings(max_examples=40, deadline=None)
@given(length=lengths, density=densities, mean_length=means, seed=seeds)
def test_a_mask_is_the_one_that_t5_makes_of_the_same_choices(length, density, mean_length, seed):
    noise, spans = num_noise(length, density, mean_length)
    draw = generator(seed, 0, 0)

    def segments(total: int) -> list[int]:
        """T5: the items that begin a segment are marked, counted through, and the counts are counted."""
        first = [0] * total
        for item in distinct(total - 1, spans - 1, draw):
            first[item + 1] = 1
        return [segment for _, segment in sorted(Counter(np.cumsum(first).tolist()).items())]

    noise_lengths, kept_lengths = segments(noise), segments(length - noise)
    expected: list[bool] = []
    for kept, hidden in zip(kept_lengths, noise_lengths, strict=True):
        expected += [False] * kept + [True] * hidden
    mask_L = noise_mask(length, generator(seed, 0, 0), density=density, mean_length=mean_length)
    assert mask_L.tolist() == expected


def test_one_span_is_the_end_of_the_text_unless_it_is_rolled():
    ends = [False] * 435 + [True] * 77
    for document in range(20):
        mask_L = noise_mask(512, generator(0, 0, document), density=0.15, mean_length=64)
        assert mask_L.tolist() == ends
    rolled = [noise_mask(512, generator(0, 0, d), density=0.15, mean_length=64, roll=True) for d in range(4000)]
    assert all(mask_L.sum() == 77 for mask_L in rolled)
    assert len({mask_L.tobytes() for mask_L in rolled}) > 500
    for place in (0, 100, 511):
        assert_binomial(sum(int(mask_L[place]) for mask_L in rolled), 4000, 77 / 512)


@settings(max_examples=80, deadline=None)
@given(length=lengths, density=densities, mean_length=means, seed=seeds)
def test_a_rolled_mask_is_turned_around_and_takes_no_more_sentinels_than_said(length, density, mean_length, seed):
    straight = noise_mask(length, generator(seed, 0, 0), density=density, mean_length=mean_length)
    rolled = noise_mask(length, generator(seed, 0, 0), density=density, mean_length=mean_length, roll=True)
    assert any((np.roll(straight, places) == rolled).all() for places in range(length))
    needed = num_sentinels_needed(length, density, mean_length, roll=True)
    assert max(len(runs(rolled)), len(runs(~rolled))) <= needed
    assert len(runs(straight)) == num_sentinels_needed(length, density, mean_length)


def test_independent_noise_is_binomial():
    masks = [iid_noise_mask(1000, generator(0, 0, document), density=0.15) for document in range(100)]
    assert_binomial(sum(int(mask_L.sum()) for mask_L in masks), 100_000, 0.15)
    together = sum(int((mask_L[1:] & mask_L[:-1]).sum()) for mask_L in masks)
    assert_binomial(together, 99_900, 0.15**2)


# ── the two sides ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_two_sides_of_the_papers_sentence_but_for_its_closing_sentinel():
    thank, you, for_, inviting, me, to, your, party, last, week = text = list(range(10, 20))
    noise = np.array([False, False, True, True, False, False, False, False, True, False])
    inputs, targets = cut_out(np.array(text), noise, sentinels=T5, eos_id=END)
    assert inputs.tolist() == [thank, you, 32_099, me, to, your, party, 32_098, week, END]
    assert targets.tolist() == [32_099, for_, inviting, 32_098, last, 32_097, END]
    noise[-1] = True
    _, targets = cut_out(np.array(text), noise, sentinels=T5, eos_id=None)
    assert targets.tolist() == [32_099, for_, inviting, 32_098, last, week]


@settings(max_examples=150, deadline=None)
@given(
    length=lengths,
    density=densities,
    mean_length=means,
    seed=seeds,
    roll=st.booleans(),
    end=st.sampled_from([END, None]),
)
def test_the_text_comes_back_from_its_two_sides(length, density, mean_length, seed, roll, end):
    text = np.random.Generator(np.random.Philox(seed)).integers(2, 500, length)
    inputs, targets = corrupt_spans(
        text,
        generator(seed, 0, 0),
        sentinels=MANY,
        eos_id=end,
        density=density,
        mean_length=mean_length,
        roll=roll,
    )
    assert restore(inputs, targets, MANY, end).tolist() == text.tolist()
    if not roll:
        _, spans = num_noise(length, density, mean_length)
        assert len(inputs) + len(targets) == length + 2 * spans + 2 * (end is not None)
        for side in (inputs, targets):
            assert side[np.isin(side, MANY)].tolist() == MANY[:spans].tolist()  # descending, each once
    assert inputs.dtype == targets.dtype == np.int64


@settings(max_examples=100, deadline=None)
@given(length=lengths, density=st.floats(0, 1), seed=seeds)
def test_the_text_comes_back_from_independent_noise(length: int, density: float, seed: int):
    text = np.arange(length)
    inputs, targets = corrupt_iid(text, generator(seed, 0, 0), sentinels=MANY, eos_id=None, density=density)
    assert restore(inputs, targets, MANY).tolist() == text.tolist()


def test_without_noise_the_targets_are_one_sentinel():
    inputs, targets = corrupt_iid(np.arange(2, 9), generator(0, 0, 0), sentinels=T5, eos_id=END, density=0.0)
    assert inputs.tolist() == [*range(2, 9), END]
    assert targets.tolist() == [32_099, END]


# ── refusals ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_too_few_sentinels_are_refused_with_the_numbers():
    with pytest.raises(
        RecipeError, match=r"50% out of 766 tokens .* takes 128 sentinels, but the vocabulary has 100"
    ) as error:
        corrupt_spans(np.arange(766), generator(0, 0, 0), sentinels=T5, eos_id=END, density=0.5)
    assert "Raise the mean length" in error.value.mend
    with pytest.raises(RecipeError, match="into 250 spans, but the vocabulary has 100"):
        cut_out(np.arange(500), np.arange(500) % 2 == 1, sentinels=T5, eos_id=END)
    with pytest.raises(RecipeError, match="has 0"):
        corrupt_spans(np.arange(9), generator(0, 0, 0), sentinels=T5[:0], eos_id=END)


def test_a_sentinel_in_the_text_is_refused():
    text = np.arange(20)
    text[7] = 32_050
    with pytest.raises(DataError, match="id 32050, at token 7"):
        corrupt_spans(text, generator(0, 0, 0), sentinels=T5, eos_id=END)
    text[7] = 32_050  # lies between two of these, and is none of them
    inputs, targets = corrupt_spans(text, generator(0, 0, 0), sentinels=T5[::2], eos_id=END)
    assert restore(inputs, targets, T5[::2], END).tolist() == text.tolist()


@pytest.mark.parametrize("corrupt", [corrupt_spans, corrupt_iid])
def test_a_text_of_one_token_is_refused(corrupt):
    with pytest.raises(DataError, match="A text of 1 tokens cannot be corrupted"):
        corrupt(np.array([5]), generator(0, 0, 0), sentinels=T5, eos_id=END)


def test_sides_that_do_not_belong_together_are_refused():
    inputs, targets = corrupt_spans(np.arange(100), generator(0, 0, 0), sentinels=MANY, eos_id=END)
    with pytest.raises(DataError, match="which come from no one text"):
        restore(inputs, np.array([MANY[0], END]), MANY, END)
    with pytest.raises(DataError, match="not in their order"):
        restore(inputs, targets, MANY[::-1], END)
    with pytest.raises(DataError, match="does not end with the token 1"):
        restore(inputs[:-1], targets, MANY, END)
