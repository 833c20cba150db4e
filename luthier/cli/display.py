"""Training as it goes on, on standard error: a live bar in a terminal, a line every few seconds anywhere else."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from luthier.evaluation.answer_curves import PREFIX, answer_columns
from luthier.sizes import readable_bytes

SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_DRAWINGS = 0.1


@dataclass
class Smoothed:
    """A running mean that forgets: each new value weighs one tenth, and the first ones are not drawn towards 0."""

    keep: float = 0.9
    _sum: float = 0.0
    _weight: float = 0.0

    def add(self, value: float) -> None:
        """Take a value in."""
        self._sum = self.keep * self._sum + (1 - self.keep) * value
        self._weight = self.keep * self._weight + (1 - self.keep)

    @property
    def value(self) -> float:
        """The mean so far; nan before the first value."""
        return self._sum / self._weight if self._weight else float("nan")


@dataclass
class Course:
    """What the steps so far add up to."""

    step: int = 0
    total_steps: int = 0
    tokens_per_second: float = 0.0
    lr: float = 0.0
    memory_bytes: int = 0
    validation_loss: float | None = None
    validation_reward: float | None = None
    answers: dict[str, float] = field(default_factory=dict)
    reward: Smoothed = field(default_factory=Smoothed)
    loss: Smoothed = field(default_factory=Smoothed)
    seconds: Smoothed = field(default_factory=Smoothed)

    def take(self, record: Mapping[str, Any], wall_seconds: float) -> None:
        """Take in a step's record, and the wall time since the one before, evaluation and saving included."""
        self.step, self.total_steps = record["step"], record["total_steps"]
        self.tokens_per_second, self.lr = record["tokens_per_second"], record["lr"]
        self.memory_bytes = record["memory_bytes"]
        self.validation_loss = record.get("validation_loss", self.validation_loss)
        self.validation_reward = record.get("validation_reward", self.validation_reward)
        self.answers |= {name.removeprefix(PREFIX): record[name] for name in answer_columns([record])}
        self.loss.add(record["loss"])
        if "reward" in record:
            self.reward.add(record["reward"])
        self.seconds.add(wall_seconds)

    @property
    def seconds_left(self) -> float:
        """About how long the remaining steps take."""
        return (self.total_steps - self.step) * self.seconds.value

    def summary(self) -> str:
        """The numbers as one line, the most telling first."""
        parts = [f"loss {self.loss.value:.3f}"]
        if math.isfinite(self.reward.value):
            parts = [f"reward {self.reward.value:.3f}"]
        if self.validation_reward is not None:
            parts.append(f"held-out {self.validation_reward:.3f}")
        elif self.validation_loss is not None:
            parts.append(f"held-out {self.validation_loss:.3f}")
        parts += [f"{name} {value:.3f}" for name, value in self.answers.items()]
        parts += [f"{self.tokens_per_second:.0f} tok/s", readable_bytes(self.memory_bytes), f"lr {self.lr:.1e}"]
        return "  ".join(parts)


def clock(seconds: float) -> str:
    """Seconds as 3:07 or 1:02:09."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class TrainingDisplay:
    """Shows what `on_step` and `announce` are told, while entered; `now` is a clock in seconds."""

    def __init__(self, console: Console | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self._console = Console(stderr=True, highlight=False) if console is None else console
        self._now = now
        self._course = Course()
        self._last_step_at = now()
        self._shown_at = float("-inf")
        self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def announce(self, text: str) -> None:
        """Say something, above the bar where there is one."""
        self._console.print(text, markup=False, soft_wrap=True)

    def on_step(self, record: Mapping[str, Any]) -> None:
        """Show a step: a record as in metrics.jsonl, with `total_steps`."""
        course, now = self._course, self._now()
        course.take(record, now - self._last_step_at if course.step else record["seconds"])
        self._last_step_at = now
        is_last = course.step == course.total_steps
        is_live = self._console.is_terminal
        pause = SECONDS_BETWEEN_DRAWINGS if is_live else SECONDS_BETWEEN_LINES
        if now - self._shown_at < pause and not is_last and "validation_loss" not in record:
            return
        self._shown_at = now
        if is_live:
            self._live.start()
            self._live.update(drawing(course), refresh=True)
        else:
            left = "" if is_last else f"  {clock(course.seconds_left)} left"
            self.announce(f"step {course.step}/{course.total_steps}  {course.summary()}{left}")


def drawing(course: Course) -> RenderableType:
    """The bar with the time left, and the numbers on a line of their own."""
    bar = ProgressBar(total=course.total_steps, completed=course.step, width=32)
    line = Table.grid(padding=(0, 1))
    line.add_row(f"step {course.step}/{course.total_steps}", bar, f"{clock(course.seconds_left)} left")
    return Group(line, Text(course.summary(), no_wrap=True, overflow="ellipsis"))


class TaskBar:
    """How far a task is, on standard error: a live bar in a terminal, while entered; called as `Progress` is."""

    def __init__(self, console: Console | None = None) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True, highlight=False) if console is None else console,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, task: str, done: int, total: int) -> None:
        """Take what is being done, how much of it is done, and how much there is."""
        if task not in self._bars:
            self._progress.start()
            self._bars[task] = self._progress.add_task(escape(task), total=total)
        self._progress.update(self._bars[task], completed=done, total=total)
