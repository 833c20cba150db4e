"""The cut of prefix language modelling."""

from __future__ import annotations

import numpy as np
import pytest
from chances import DRAWS, assert_as_likely
from hypothesis import given
from hypothesis import strategies as st

from luthier.corruption.keyed import generator
from luthier.corruption.prefix import cut_at, split_point, split_point_at
from luthier.errors import DataError


def test_every_cut_that_leaves_neither_part_empty_is_as_likely():
    draw = generator(0, 0, 0)
    counts = np.bincount([split_point(11, draw) for _ in range(DRAWS)], minlength=11)
    assert counts[0] == 0
    assert_as_likely(counts[1:].tolist())
    assert len(counts) == 11


@given(st.integers(2, 400), st.floats(0, 1))
def test_a_cut_at_a_share_leaves_that_share_and_neither_part_empty(length: int, share: float):
    at = split_point_at(length, share)
    assert 1 <= at <= length - 1
    assert abs(length - at - length * share) <= max(0.5, 1 - length * share, length * share - (length - 1))


def test_the_parts_are_the_text_and_both_end():
    inputs, targets = cut_at(np.arange(10, 20), 7, eos_id=1)
    assert inputs.tolist() == [10, 11, 12, 13, 14, 15, 16, 1]
    assert targets.tolist() == [17, 18, 19, 1]
    inputs, targets = cut_at(np.arange(10, 20), 0, eos_id=None)
    assert (len(inputs), targets.tolist()) == (0, list(range(10, 20)))
    assert inputs.dtype == targets.dtype == np.int64


def test_one_token_cannot_be_cut():
    for cut in (lambda: split_point(1, generator(0, 0, 0)), lambda: split_point_at(1, 0.25)):
        with pytest.raises(DataError, match="cannot be cut in two parts"):
            cut()
