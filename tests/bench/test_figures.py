"""Medians, ratios and the comparison of losses."""

from __future__ import annotations

import math

import pytest

from bench.clock import Lap
from bench.figures import figures_of, largest_loss_difference, medians, ratio, table
from bench.processes import Outcome


def outcome(*wall_seconds: float, peak_bytes: int = 1) -> Outcome:
    laps = tuple(Lap(wall, 2 * wall, wall / 2, 0, 1.0) for wall in wall_seconds)
    return Outcome(laps, peak_bytes, 0, {}, 2)


def test_the_first_step_counts_only_where_it_is_said_to() -> None:
    found = figures_of(outcome(10.0, 1.0, 1.0), [100, 100, 200])
    assert found.tokens_per_second == 150
    assert found.tokens_per_second_all == pytest.approx(400 / 12)
    assert found.tokens_per_cpu_second == 75
    assert found.system_share == 0.25


def test_medians_are_taken_figure_by_figure() -> None:
    rounds = [
        figures_of(outcome(1.0, seconds, peak_bytes=peak), [10, 10]) for seconds, peak in ((1, 3), (2, 1), (5, 2))
    ]
    assert medians(rounds).tokens_per_second == 5
    assert medians(rounds).peak_bytes == 2


def test_a_ratio_tells_its_spread_over_the_rounds() -> None:
    found = ratio([30.0, 40.0, 20.0], [10.0, 10.0, 10.0])
    assert (found.of_medians, found.lowest, found.highest) == (3.0, 2.0, 4.0)


def test_the_largest_loss_difference_is_between_any_two_runs_at_one_step() -> None:
    assert largest_loss_difference([[1.0, 2.0], [1.0, 2.5], [0.9, 2.0]]) == pytest.approx(0.5)


def test_a_loss_that_is_no_number_never_agrees() -> None:
    assert largest_loss_difference([[1.0, 2.0], [1.0, math.nan]]) == math.inf


def test_runs_of_different_length_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="longer"):
        largest_loss_difference([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]])


def test_every_line_of_a_table_is_as_long_as_the_others() -> None:
    lines = table(("name", "value"), [("a", "1"), ("a longer one", "12345.6")]).splitlines()
    assert len({len(line) for line in lines}) == 1
