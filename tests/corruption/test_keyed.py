"""Draws follow from the seed, the epoch and the document, and what is derived from uniform numbers is uniform too."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from itertools import combinations, permutations
from types import SimpleNamespace

import numpy as np
import pytest
from chances import DRAWS, assert_as_likely

from luthier.corruption.infilling import corrupt_text
from luthier.corruption.keyed import below, distinct, generator, one_of, shuffled
from luthier.corruption.masking import mask_tokens
from luthier.corruption.middle import split_middle
from luthier.corruption.prefix import split_point
from luthier.corruption.spans import corrupt_iid, corrupt_spans
from luthier.corruption.ul2 import choose_denoiser, corrupt_as

Corruption = Callable[[np.random.Generator], object]

TEXT = np.arange(10, 510)
MASKABLE = np.ones(500, dtype=np.bool_)
SENTINELS = np.arange(1999, 1799, -1)
STOPS = np.arange(20, 500, 20)
CORRUPTIONS: dict[str, Corruption] = {
    "masking": lambda draw: mask_tokens(TEXT, MASKABLE, draw, mask_id=1, random_ids=900),
    "spans": lambda draw: corrupt_spans(TEXT, draw, sentinels=SENTINELS, eos_id=2),
    "iid": lambda draw: corrupt_iid(TEXT, draw, sentinels=SENTINELS, eos_id=2),
    "infilling": lambda draw: corrupt_text(TEXT, draw, mask_id=1, random_ids=900, full_stop_ids=STOPS),
    "ul2": lambda draw: corrupt_as(
        TEXT, choose_denoiser(draw), draw, sentinels=SENTINELS, eos_id=2, mode_ids={"R": 3, "X": 4, "S": 5}
    ),
    "prefix": lambda draw: split_point(500, draw),
    "middle": lambda draw: split_middle("luthier " * 60, draw),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_document_is_corrupted_in_the_same_way_whoever_does_it_and_when(name: str):
    corrupt = CORRUPTIONS[name]
    once = [repr(corrupt(generator(3, 1, document))) for document in range(20)]
    backwards = [repr(corrupt(generator(3, 1, document))) for document in reversed(range(20))]
    assert once == backwards[::-1]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_another_epoch_corrupts_otherwise(name: str):
    corrupt = CORRUPTIONS[name]
    epochs = {repr(corrupt(generator(3, epoch, 7))) for epoch in range(20)}
    assert len(epochs) > 10  # two epochs may agree where little is drawn


def test_each_of_seed_epoch_document_and_salt_changes_the_draws_and_none_stands_for_another():
    keys = [
        (seed, epoch, document, salt)
        for seed in (-1, 0, 1)
        for epoch in (0, 1)
        for document in (0, 1)
        for salt in (0, 1)
    ]
    assert len({generator(*key).random() for key in keys}) == len(keys)
    assert generator(2**64 + 5, 0, 0).random() == generator(5, 0, 0).random()


def test_numbers_below_a_bound_are_uniform_and_never_the_bound():
    drawn = below(7, 100_000, generator(0, 0, 0))
    assert_as_likely(np.bincount(drawn, minlength=7).tolist())
    assert len(np.bincount(drawn)) == 7
    almost_one = SimpleNamespace(random=lambda count: np.full(count, 1 - 2**-53))
    assert below(3, 2, almost_one).tolist() == [2, 2]  # 3 · (1 − 2⁻⁵³) rounds to 3


def test_every_order_and_every_set_is_as_likely_as_the_others():
    draw = generator(0, 0, 1)
    orders = Counter(tuple(shuffled(4, draw).tolist()) for _ in range(12_000))
    assert_as_likely([orders[order] for order in permutations(range(4))])
    sets = Counter(tuple(distinct(6, 3, draw).tolist()) for _ in range(DRAWS))
    assert set(sets) == set(combinations(range(6), 3))
    assert_as_likely([sets[chosen] for chosen in combinations(range(6), 3)])
    assert len(sets) == math.comb(6, 3)


def test_all_none_or_one_can_be_chosen():
    draw = generator(0, 0, 2)
    assert distinct(5, 0, draw).tolist() == []
    assert distinct(5, 5, draw).tolist() == [0, 1, 2, 3, 4]
    assert distinct(1, 1, draw).tolist() == [0]
    assert distinct(0, 0, draw).tolist() == []


def test_weights_say_how_likely_an_index_is():
    draw = generator(0, 0, 3)
    drawn = Counter(one_of([2.0, 0.0, 1.0, 5.0, 0.0], draw) for _ in range(DRAWS))
    assert set(drawn) == {0, 2, 3}
    assert_as_likely([drawn[0], drawn[2], drawn[3]], [2, 1, 5])
