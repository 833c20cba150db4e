"""Fill in the middle: cuts, orders, and lengths that are kept."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from chances import DRAWS, assert_as_likely, assert_binomial
from hypothesis import given
from hypothesis import strategies as st

from luthier.corruption.keyed import generator
from luthier.corruption.middle import Marks, Order, choose_order, fill_in_middle, split_middle
from luthier.types import IntArray

MARKS = Marks(prefix=1001, suffix=1002, middle=1003, end=1004, pad=1005)
ORDERS: tuple[Order, ...] = ("psm", "spm")
TEXTS = st.text("aZ é漢🎻\n", max_size=40)


def bytes_of(text: str) -> IntArray:
    """A text by a tokenizer of single bytes; what is not whole characters it refuses."""
    return np.array(list(text.encode()), dtype=np.int64)


@given(TEXTS, st.integers(0, 1000))
def test_the_parts_are_the_text_again_in_any_script(text: str, seed: int):
    parts = split_middle(text, generator(seed, 0, 0))
    assert "".join(parts) == text


def test_cuts_never_part_the_bytes_of_a_character():
    text = "naïve 漢字 🎻 Ünïcödé — ok"
    cuts: set[int] = set()
    for document in range(300):
        parts = split_middle(text, generator(0, 0, document))
        for part in parts:
            assert bytes(bytes_of(part).tolist()).decode() == part
        cuts |= {len(parts[0]), len(parts[0] + parts[1])}
    assert cuts == set(range(len(text) + 1))


def test_every_pair_of_cuts_is_as_likely_and_parts_may_be_empty():
    draw = generator(0, 0, 0)
    found = Counter(tuple(map(len, split_middle("abc", draw))) for _ in range(DRAWS))
    pairs = [(start, stop) for start in range(4) for stop in range(start, 4)]
    counts = [found[start, stop - start, 3 - stop] for start, stop in pairs]
    assert sum(counts) == DRAWS
    assert_as_likely(counts, [1 if start == stop else 2 for start, stop in pairs])


def test_orders_come_at_their_rates():
    draw = generator(0, 0, 1)
    found = Counter(choose_order(draw, rate=0.7, spm_rate=0.4) for _ in range(DRAWS))
    assert_as_likely([found[None], found["psm"], found["spm"]], [0.3, 0.7 * 0.6, 0.7 * 0.4])
    cut = sum(choose_order(draw) is not None for _ in range(DRAWS))
    assert_binomial(cut, DRAWS, 0.5)


@pytest.mark.parametrize(("rate", "spm_rate", "order"), [(0.0, 0.5, None), (1.0, 0.0, "psm"), (1.0, 1.0, "spm")])
def test_a_rate_of_none_or_all_is_none_or_all(rate: float, spm_rate: float, order: Order | None):
    assert {choose_order(generator(0, 0, d), rate=rate, spm_rate=spm_rate) for d in range(300)} == {order}


@pytest.mark.parametrize("end", [1004, None])
def test_the_parts_come_in_the_published_orders(end: int | None):
    marks = Marks(1001, 1002, 1003, end)
    prefix, middle, suffix = np.array([1, 2]), np.array([3]), np.array([4, 5, 6])
    tail = [] if end is None else [end]
    psm, spm = (fill_in_middle(prefix, middle, suffix, order, marks) for order in ORDERS)
    assert psm is not None
    assert spm is not None
    assert psm.tolist() == [1001, 1, 2, 1002, 4, 5, 6, 1003, 3, *tail]
    assert spm.tolist() == [1001, 1002, 4, 5, 6, 1003, 1, 2, 3, *tail]
    assert psm.dtype == spm.dtype == np.int64


@pytest.mark.parametrize("order", ORDERS)
@given(text=TEXTS, seed=st.integers(0, 1000))
def test_the_text_can_be_read_out_of_its_marked_parts(order: Order, text: str, seed: int):
    parts = split_middle(text, generator(seed, 0, 0))
    marked = fill_in_middle(*map(bytes_of, parts), order, MARKS)
    assert marked is not None
    places = [np.flatnonzero(marked == mark) for mark in (1001, 1002, 1003, 1004)]
    assert [len(place) for place in places] == [1, 1, 1, 1]
    prefix, suffix, middle, end = (int(place[0]) for place in places)
    assert prefix == 0 < suffix < middle < end == len(marked) - 1
    before, between, after = marked[1:suffix], marked[suffix + 1 : middle], marked[middle + 1 : end]
    pieces = (before, after, between)  # P M S, in spm with P at the head of what follows the middle's mark
    assert bytes(np.concatenate(pieces).tolist()).decode() == text
    assert (len(before) == 0) or order == "psm"


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("length", [12, 14, 16, 17, 20])
def test_a_kept_length_cuts_or_pads_the_suffix_alone(order: Order, length: int):
    prefix, middle, suffix = np.arange(1, 4), np.arange(11, 15), np.arange(21, 27)  # 13 and 4 marks make 17
    marked = fill_in_middle(prefix, middle, suffix, order, MARKS, length=length)
    assert marked is not None
    assert len(marked) == length
    kept = marked[(marked >= 21) & (marked <= 26)]
    assert kept.tolist() == suffix[: min(6, length - 11)].tolist()
    assert (marked == MARKS.pad).sum() == max(0, length - 17)
    without = marked[(marked < 21)]
    assert without.tolist() == [*range(1, 4), *range(11, 15)]


@pytest.mark.parametrize("order", ORDERS)
def test_a_suffix_that_would_vanish_leaves_the_text_as_it_was(order: Order):
    prefix, middle, suffix = np.arange(3), np.arange(4), np.arange(6)
    assert fill_in_middle(prefix, middle, suffix, order, MARKS, length=11) is None
    assert fill_in_middle(prefix, middle, suffix, order, MARKS, length=12) is not None
    assert fill_in_middle(prefix, middle, suffix[:0], order, MARKS, length=7) is None
