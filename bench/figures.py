"""From what was measured to the figures that are told: medians, ratios, differences of losses, tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median

from bench.processes import Outcome

LOSS_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Figures:
    """One run, or the medians of several. Tokens are real ones; the first step, which touches all memory for the first
    time, counts only in `tokens_per_second_all`."""

    tokens_per_second: float
    tokens_per_second_all: float
    tokens_per_cpu_second: float
    system_share: float
    peak_bytes: float


def figures_of(outcome: Outcome, real_tokens: Sequence[int]) -> Figures:
    """The figures of one run. real_tokens: of each step."""
    later = outcome.laps[1:]
    wall = sum(lap.wall_seconds for lap in later)
    cpu = sum(lap.cpu_seconds for lap in later)
    return Figures(
        tokens_per_second=sum(real_tokens[1:]) / wall,
        tokens_per_second_all=sum(real_tokens) / (wall + outcome.laps[0].wall_seconds),
        tokens_per_cpu_second=sum(real_tokens[1:]) / cpu,
        system_share=sum(lap.system_seconds for lap in later) / cpu,
        peak_bytes=float(outcome.peak_bytes),
    )


def medians(rounds: Iterable[Figures]) -> Figures:
    """Each figure's median over the rounds."""
    columns = [asdict(figures) for figures in rounds]
    return Figures(**{name: median(column[name] for column in columns) for name in columns[0]})


@dataclass(frozen=True)
class Ratio:
    """How many times as much: the ratio of the medians, and the lowest and highest ratio within a round."""

    of_medians: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        return f"{self.of_medians:.2f} ({self.lowest:.2f}–{self.highest:.2f})"


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """The ratio of two measures, one value a round each."""
    each = [a / b for a, b in zip(above, below, strict=True)]
    return Ratio(median(above) / median(below), min(each), max(each))


def largest_loss_difference(losses: Iterable[Sequence[float]]) -> float:
    """The widest gap between any two runs' losses at one step (nats a token); infinite if a loss is not a number."""
    steps = list(zip(*losses, strict=True))
    if not all(math.isfinite(loss) for at_step in steps for loss in at_step):
        return math.inf
    return max((max(at_step) - min(at_step) for at_step in steps), default=0.0)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, its first column left-aligned and the others right-aligned, padded to read well as plain text."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(head))]

    def line_of(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if not i else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = "|" + "|".join([":" + "-" * (widths[0] + 1), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([line_of(lines[0]), rule, *(line_of(line) for line in lines[1:])])


def gigabytes(number: float) -> str:
    """Bytes as GB of 10⁹."""
    return f"{number / 1e9:.2f}"
