"""The learning rate of each step: facts about its shape, whatever the settings."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.training.schedule import lr_factor, warmup_steps
from luthier.training.settings import Schedule


@st.composite
def schedules(draw: st.DrawFn) -> tuple[Schedule, int]:
    """A schedule and a number of steps."""
    schedule = Schedule(
        kind=draw(st.sampled_from(["cosine", "linear", "constant"])),
        warmup_fraction=draw(st.floats(0, 0.999)),
        warmup_steps=draw(st.none() | st.integers(0, 300)),
        final_fraction=draw(st.sampled_from([0.0, 0.1, 1.0])),
    )
    return schedule, draw(st.integers(1, 200))


@given(schedules())
def test_the_rate_rises_to_the_peak_is_there_once_warm_and_never_rises_again(drawn: tuple[Schedule, int]) -> None:
    schedule, total = drawn
    rates = [lr_factor(schedule, step, total) for step in range(1, total + 1)]
    warm = warmup_steps(schedule, total)
    assert all(0 < rate <= 1 for rate in rates), "no step is spent at rate 0"
    assert rates[warm] == 1
    assert all(one < two for one, two in pairwise(rates[: warm + 1]))
    assert all(one >= two for one, two in pairwise(rates[warm:]))
    assert all(rate >= schedule.final_fraction - 1e-12 for rate in rates[warm:])


@given(schedules())
def test_the_fall_would_reach_the_final_fraction_one_step_after_the_last(drawn: tuple[Schedule, int]) -> None:
    schedule, total = drawn
    after = lr_factor(schedule, total + 1, total)
    expected = 1.0 if schedule.kind == "constant" else schedule.final_fraction
    assert after == pytest.approx(expected, abs=1e-12)


def test_warm_up_is_a_straight_line() -> None:
    schedule = Schedule(warmup_steps=4)
    assert [lr_factor(schedule, step, 20) for step in range(1, 6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_the_cosine_is_half_way_down_at_half_the_way_and_the_line_is_straight() -> None:
    cosine, line = Schedule(warmup_steps=0), Schedule(kind="linear", warmup_steps=0, final_fraction=0.5)
    assert lr_factor(cosine, 11, 20) == pytest.approx(0.5)
    assert lr_factor(cosine, 6, 20) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert [lr_factor(line, step, 4) for step in (1, 2, 3, 4)] == pytest.approx([1, 0.875, 0.75, 0.625])


def test_steps_go_before_the_fraction_and_at_least_one_step_is_at_the_peak() -> None:
    assert warmup_steps(Schedule(warmup_fraction=0.5, warmup_steps=3), 100) == 3
    assert warmup_steps(Schedule(warmup_fraction=0.05), 100) == 5
    assert warmup_steps(Schedule(warmup_steps=1000), 10) == 9
    assert warmup_steps(Schedule(warmup_fraction=0.9), 1) == 0
    assert lr_factor(Schedule(warmup_fraction=0.9), 1, 1) == 1
