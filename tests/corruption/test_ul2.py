"""UL2's mixture: what is drawn how often, and what each denoiser makes of a text."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from chances import DRAWS, assert_as_likely

from luthier.corruption.keyed import generator
from luthier.corruption.spans import restore
from luthier.corruption.ul2 import DENOISERS, Denoiser, Mode, choose_denoiser, corrupt_as
from luthier.errors import RecipeError

SENTINELS = np.arange(4_999, 4_799, -1)
MODE_IDS: dict[Mode, int] = {"R": 3, "X": 4, "S": 5}
END = 1
every_denoiser = pytest.mark.parametrize("denoiser", DENOISERS, ids=str)


def test_the_seven_are_as_likely_as_each_other_and_their_modes_as_many_sevenths():
    draw = generator(0, 0, 0)
    drawn = Counter(choose_denoiser(draw) for _ in range(DRAWS))
    assert_as_likely([drawn[denoiser] for denoiser in DENOISERS])
    modes = Counter(denoiser.mode for denoiser in drawn.elements())
    assert_as_likely([modes["R"], modes["X"], modes["S"]], [2, 4, 1])


def test_weights_change_how_likely_they_are():
    draw = generator(0, 0, 1)
    drawn = Counter(choose_denoiser(draw, DENOISERS[:3], [3.0, 0.0, 1.0]) for _ in range(DRAWS))
    assert_as_likely([drawn[DENOISERS[0]], drawn[DENOISERS[2]]], [3, 1])
    assert DENOISERS[1] not in drawn


@every_denoiser
@pytest.mark.parametrize("inputs_length", [64, 512])
def test_inputs_have_the_same_length_whichever_is_drawn(denoiser: Denoiser, inputs_length: int):
    raw, targets_length = denoiser.raw_length(inputs_length - 1)
    inputs, targets = corrupt_as(
        np.arange(10, 10 + raw), denoiser, generator(0, 0, 0), sentinels=SENTINELS, eos_id=END, mode_ids=MODE_IDS
    )
    assert inputs_length - 1 <= len(inputs) <= inputs_length  # at 0.5 the text may be one token shorter
    assert len(targets) == targets_length
    assert inputs[0] == MODE_IDS[denoiser.mode]


@every_denoiser
@pytest.mark.parametrize("length", [2, 37, 400])
def test_the_text_comes_back(denoiser: Denoiser, length: int):
    text = np.arange(10, 10 + length)
    for document in range(10):
        inputs, targets = corrupt_as(
            text, denoiser, generator(0, 0, document), sentinels=SENTINELS, eos_id=END, mode_ids=None
        )
        if denoiser.mode == "S":
            assert np.concatenate([inputs[:-1], targets[:-1]]).tolist() == text.tolist()
            assert inputs[-1] == targets[-1] == END
        else:
            assert restore(inputs, targets, SENTINELS, END).tolist() == text.tolist()
            assert np.isin(inputs, SENTINELS).sum() == denoiser.num_sentinels(length)


def test_the_sequential_denoiser_writes_the_last_quarter():
    (sequential,) = (denoiser for denoiser in DENOISERS if denoiser.mode == "S")
    _, targets = corrupt_as(
        np.arange(400), sequential, generator(0, 0, 0), sentinels=SENTINELS[:0], eos_id=None, mode_ids=None
    )
    assert targets.tolist() == list(range(300, 400))
    assert sequential.num_sentinels(400) == 0
    assert sequential.raw_length(512) == (681, 171)


def test_the_most_sentinels_at_inputs_of_512_are_128():
    needed = {denoiser: denoiser.num_sentinels(denoiser.raw_length(512)[0]) for denoiser in DENOISERS}
    assert max(needed.values()) == needed[Denoiser("X", 0.5, 3.0)] == 128
    with pytest.raises(RecipeError, match="takes 128 sentinels, but the vocabulary has 100"):
        corrupt_as(
            np.arange(766),
            Denoiser("X", 0.5, 3.0),
            generator(0, 0, 0),
            sentinels=SENTINELS[:100],
            eos_id=END,
            mode_ids=MODE_IDS,
        )


def test_inputs_that_no_text_gives_are_refused():
    for denoiser in DENOISERS:
        with pytest.raises(RecipeError, match="tokens or more"):
            denoiser.raw_length(1)
