"""MinHash: rows meet in a bucket as often as their similarity says, in memory as on the disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from luthier.data.checks.minhash import (
    NUM_HASHES,
    Buckets,
    MinHash,
    band_keys,
    probability_of_meeting,
    shingle_array,
    shingles,
    words_of,
)


def pairs_of_sets(similarity: float, count: int, generator: np.random.Generator) -> list[tuple[set[int], set[int]]]:
    """Pairs of sets of 60 numbers each with that Jaccard similarity, as near as whole numbers allow."""
    shared = round(120 * similarity / (1 + similarity))
    drawn = [generator.choice(1 << 40, 120 - shared, replace=False).tolist() for _ in range(count)]
    return [(set(each[:60]), set(each[60 - shared :])) for each in drawn]


def as_array(elements: set[int]) -> NDArray[np.uint64]:
    return np.fromiter(elements, np.uint64, len(elements))


def test_shingles_are_the_same_numbers_as_a_set_and_as_an_array():
    words = words_of("The cat saw the cat, and THE dog.")
    assert words == ["the", "cat", "saw", "the", "cat", "and", "the", "dog"]
    assert set(shingle_array(words).tolist()) == shingles(words)
    assert len(shingle_array([])) == 0


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.8])
def test_signatures_agree_at_so_many_places_as_the_sets_are_similar(similarity: float):
    pairs = pairs_of_sets(similarity, 200, np.random.default_rng(1))
    true = np.mean([len(a & b) / len(a | b) for a, b in pairs])
    first, second = (MinHash().signatures([as_array(pair[side]) for pair in pairs]) for side in (0, 1))
    # 200 · 64 places: the standard error of their mean is at most 0.5 / √12,800 < 0.0045
    assert np.mean(first == second) == pytest.approx(true, abs=4 * 0.0045)


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.65])
def test_rows_meet_with_the_probability_of_the_s_curve(similarity: float):
    met, count = 0, 600
    pairs = pairs_of_sets(similarity, count, np.random.default_rng(2))
    true = len(pairs[0][0] & pairs[0][1]) / len(pairs[0][0] | pairs[0][1])
    for start in range(0, count, 50):  # other hashes each time: one set of hashes favours some pairs
        minhash = MinHash(seed=start)
        first, second = (
            band_keys(minhash.signatures([as_array(pair[side]) for pair in pairs[start : start + 50]]))
            for side in (0, 1)
        )
        met += int((first == second).any(axis=1).sum())
    expected = probability_of_meeting(true)
    assert met / count == pytest.approx(expected, abs=4 * (expected * (1 - expected) / count) ** 0.5)


def test_near_copies_nearly_always_meet_and_strangers_seldom():
    assert probability_of_meeting(0.8) > 0.999
    assert probability_of_meeting(0.1) < 0.01


def test_buckets_on_the_disk_give_the_pairs_of_those_in_memory(tmp_path: Path):
    generator = np.random.default_rng(3)
    keys = generator.integers(0, 1 << 63, (300, 16), dtype=np.uint64)
    keys[200:] = np.where(generator.random((100, 16)) < 0.3, keys[:100], keys[200:])
    held, spilled = Buckets(tmp_path, 10_000), Buckets(tmp_path, 40)
    for start in range(0, 300, 30):
        rows = np.arange(start, start + 30)
        held.add(rows, keys[start : start + 30])
        spilled.add(rows, keys[start : start + 30])
    assert any(tmp_path.iterdir())
    pairs = held.pairs()
    assert len(pairs) >= 90
    np.testing.assert_array_equal(pairs, spilled.pairs())


def test_no_rows_make_no_pairs(tmp_path: Path):
    assert Buckets(tmp_path, 10).pairs().shape == (0, 2)


def test_words_are_those_of_any_script_and_an_empty_set_has_a_signature():
    assert words_of("Don't stop, Äpfel! 你好") == ["don", "t", "stop", "äpfel", "你", "好"]
    assert len(shingles(["a", "b", "a"])) == 4
    assert MinHash().signatures([as_array(set())]).tolist() == [[0xFFFFFFFF] * NUM_HASHES]
