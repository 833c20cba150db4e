"""What is told of scores beside what people said: accuracy, calibration, length, and order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from luthier.evaluation.pairwise import (
    Pairs,
    by_length,
    by_row,
    calibration_error,
    histogram,
    hits,
    length_bias,
    pair_losses,
    reliability,
)
from luthier.evaluation.reward import by_length_alone, letters_of, pair_measures, pairs_of, turned
from luthier.objectives import Reward
from luthier.types import Completion, Conversation, Example, Message, Origin, Preference, Ranking, Rendered

Column = NDArray[np.float64]


def pairs(gap: Column, letters: Column | None = None, chance: Column | None = None) -> Pairs:
    ones = np.ones_like(gap)
    return Pairs(gap, ones if chance is None else chance, 0 * ones if letters is None else letters, np.arange(len(gap)))


def drawn(num: int, seed: int = 0) -> tuple[Column, Column]:
    """Gaps, and who is the better one where each is as likely as its gap says."""
    draw = np.random.default_rng(seed)
    gap = draw.normal(size=num) * 1.5
    return gap, (draw.random(num) < 1 / (1 + np.exp(-gap))).astype(np.float64)


def test_a_pair_of_equal_scores_counts_half_and_a_large_gap_costs_its_size() -> None:
    assert hits(np.array([2.0, 0.0, -1.0])).tolist() == [1, 0.5, 0]
    ones = np.ones(3)
    assert pair_losses(np.array([0.0, 1e4, -1e4]), ones) == pytest.approx([np.log(2), 0, 1e4])
    assert pair_losses(np.array([0.0]), np.array([0.5]))[0] == pytest.approx(np.log(2))


def test_scores_that_are_as_sure_as_they_are_right_are_calibrated_and_doubled_ones_are_not() -> None:
    gap, came = drawn(20_000)
    assert calibration_error(gap, came) < 0.01
    assert calibration_error(2 * gap, came) > 0.05
    assert calibration_error(np.full(10, 100.0), np.ones(10)) == pytest.approx(0)
    assert calibration_error(np.full(10, -100.0), np.ones(10)) == pytest.approx(1)


def test_each_pair_is_in_two_opposite_bins_of_ten() -> None:
    bins = reliability(np.array([0.0, 3.0, -3.0, 0.5]), np.ones(4))
    assert sum(each.count for each in bins) == 8
    mirrored = {(round(1 - each.high, 6), each.count) for each in bins if each.low not in (0.4, 0.5)}
    assert mirrored == {(round(each.low, 6), each.count) for each in bins if each.low not in (0.4, 0.5)}
    for each in bins:
        assert each.low <= each.mean <= each.high


def test_a_histogram_counts_every_pair_once() -> None:
    gap, _ = drawn(101)
    bars = histogram(gap)
    assert sum(count for *_, count in bars) == 101
    assert (bars[0][0], bars[-1][1]) == (gap.min(), gap.max())


def test_a_model_that_goes_by_length_is_seen_to() -> None:
    draw = np.random.default_rng(1)
    letters = draw.normal(size=400).round(2)
    by_letters = pairs(letters * 0.1, letters)
    bias = length_bias(by_letters, letters, letters)
    assert bias.of_gaps == pytest.approx(1)
    assert bias.when_longer is not None
    assert bias.when_shorter is not None
    assert (bias.when_longer.value, bias.when_shorter.value) == (1, 0)
    bins = by_length(by_letters)
    assert [each.count for each in bins] == [40] * 10
    assert bins[0].accuracy.value < 0.1 < 0.9 < bins[-1].accuracy.value
    fair = length_bias(pairs(np.abs(draw.normal(size=400)), letters), draw.normal(size=400), letters)
    assert abs(fair.of_gaps) < 0.15
    assert abs(fair.of_scores) < 0.15


def test_the_rule_of_length_prefers_what_the_rows_prefer() -> None:
    gap, which = by_length_alone(pairs(np.zeros(4), np.array([5.0, 2.0, -1.0, 0.0])))
    assert which == "longer"
    assert gap == pytest.approx(np.log(2.5 / 1.5) * np.array([1, 1, -1, 0]))
    assert by_length_alone(pairs(np.zeros(2), np.array([-5.0, -2.0])))[1] == "shorter"


def test_ties_do_not_count_for_accuracy_and_rows_are_what_is_drawn_anew() -> None:
    found = pairs(np.array([1.0, -1.0, 3.0]), chance=np.array([1.0, 1.0, 0.5]))
    accuracy, loss = pair_measures([np.zeros(3), found.gap_P], found)
    assert [each.value for each in accuracy.estimates] == [0.5, 0.5]
    assert (accuracy.num_rows, loss.num_rows) == (2, 3)
    assert loss.estimates[0].value == pytest.approx(np.log(2))
    means, counts = by_row(np.array([1.0, 0.0, 1.0]), np.array([4, 4, 7]))
    assert (list(means), list(counts)) == ([0.5, 1.0], [2, 1])


def row(*answers: list[int], shares: tuple[float, ...]) -> Example:
    texts = [
        Rendered(
            np.array([5, 6, *words]), np.array([0, 0, *([1] * len(words))], dtype=np.float32), place=i, share=share
        )
        for i, (words, share) in enumerate(zip(answers, shares, strict=True))
    ]
    first, *others = texts
    return Reward().example(replace(first, beside=tuple(others)), 0, Origin("rows", 1))


def test_pairs_are_told_with_the_better_answer_first() -> None:
    examples = [row([7], [8, 9], shares=(0.25, 0.75)), row([7], [8, 9], [10], shares=(1, 0, 0))]
    found = pairs_of(examples, [np.array([1.0, 4.0]), np.array([3.0, 2.0, 0.0])], [np.array([1.0, 2.0]), np.zeros(3)])
    assert found.gap_P.tolist() == [3, 1, 3, 2]
    assert found.probability_P.tolist() == [0.75, 1, 1, 1]
    assert found.letters_P.tolist()[0] == 1
    assert found.row_P.tolist() == [0, 1, 1, 1]


def test_a_row_turned_round_has_the_same_answers_in_the_other_order() -> None:
    example = row([7], [8, 9], [10], shares=(1, 0, 0))
    found = turned(example)
    assert [part.tokens_T.tolist() for part in found.parts] == [[5, 6], [10], [8, 9], [7]]
    tokens = np.concatenate([part.tokens_T for part in found.parts])
    assert tokens[found.source_N].tolist() == [10, 9, 7]
    assert found.token_N.tolist() == [2, 1, 0]
    back = turned(found)
    assert back.source_N.tolist() == example.source_N.tolist()
    assert [part.tokens_T.tolist() for part in back.parts] == [part.tokens_T.tolist() for part in example.parts]


def test_letters_are_counted_from_where_answers_part() -> None:
    chats = [Conversation((Message("user", "Hi"), Message("assistant", text))) for text in ("Hello", "Go")]
    assert letters_of(Preference(*chats)).tolist() == [5, 2]
    assert letters_of(Ranking((Completion("Hi", "abc"), Completion("Hi", "")), (0, 1))).tolist() == [3, 0]
