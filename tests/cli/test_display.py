"""The display of a training run: a bar in a terminal, lines elsewhere, and the numbers in both."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from luthier.cli.display import Course, Smoothed, TaskBar, TrainingDisplay, clock
from luthier.cli.output import aligned
from luthier.sizes import readable_bytes


def record(step: int, total: int = 10, **more: Any) -> dict[str, Any]:
    numbers = {
        "loss": 1.0 / step,
        "tokens_per_second": 350.0,
        "lr": 2e-4,
        "memory_bytes": 2_300_000_000,
        "seconds": 2.0,
    }
    return {"step": step, "total_steps": total, **numbers, **more}


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def shown(records: list[dict[str, Any]], seconds_a_step: float, *, terminal: bool) -> str:
    out, now = io.StringIO(), Clock()
    console = Console(file=out, force_terminal=terminal, width=100, highlight=False)
    with TrainingDisplay(console, now) as display:
        display.announce("Model [bold] is 1/3 of 3")
        for each in records:
            now.seconds += seconds_a_step
            display.on_step(each)
    return out.getvalue()


def test_elsewhere_than_in_a_terminal_a_line_comes_every_five_seconds_and_at_the_end():
    lines = shown([record(step) for step in range(1, 11)], 2.0, terminal=False).splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["1/10", "4/10", "7/10", "10/10"]
    assert lines[1].endswith("0:18 left")
    assert "left" not in lines[-1]


def test_an_evaluation_is_always_told_and_stays_in_view():
    lines = shown([record(1), record(2, validation_loss=0.75), record(10)], 0.1, terminal=False).splitlines()
    assert "held-out" not in lines[1]
    assert "held-out 0.750" in lines[2]
    assert "held-out 0.750" in lines[3]


def test_in_a_terminal_there_is_a_bar_with_the_same_numbers():
    text = shown([record(step) for step in range(1, 11)], 2.0, terminal=True)
    for part in ("step 10/10", "━", "350 tok/s", "2.3 GB", "lr 2.0e-04", "0:18 left"):
        assert part in text


def test_what_is_announced_is_not_taken_for_markup():
    assert "Model [bold] is 1/3 of 3" in shown([], 1.0, terminal=False)


def test_smoothing_begins_at_the_first_value_and_follows_later_ones():
    mean = Smoothed()
    mean.add(4.0)
    assert mean.value == pytest.approx(4.0)
    for _ in range(200):
        mean.add(1.0)
    assert mean.value == pytest.approx(1.0, abs=1e-6)


def test_the_time_left_counts_evaluation_and_saving():
    course = Course()
    for step in range(1, 6):
        course.take(record(step), wall_seconds=3.0)
    assert course.seconds_left == pytest.approx(15.0)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (187, "3:07"), (3729, "1:02:09")])
def test_times_are_told_as_on_a_clock(seconds: float, text: str):
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.3e9, "2.3 GB"), (5e12, "5.0 TB")]
)
def test_bytes_have_a_unit(count: float, text: str):
    assert readable_bytes(count) == text


def test_columns_stand_under_each_other():
    assert aligned([["a", "bb", ""], ["ccc", "d", "e"]]) == ["a    bb", "ccc  d   e"]


def test_a_task_shows_how_much_of_it_is_done() -> None:
    out = io.StringIO()
    with TaskBar(Console(file=out, force_terminal=True, width=120)) as bar:
        bar("answers of [a]", 1, 4)
        bar("answers of [a]", 4, 4)
    assert "answers of [a]" in out.getvalue()
    assert "4/4" in out.getvalue()
