"""What an evaluation found, and how it is said: as JSON, as a table, and in one sentence."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from luthier.evaluation.intervals import Estimate
from luthier.types import Origin

FEWEST_ROWS = 10
"""With fewer rows no verdict is given: a bootstrap over a handful of rows is surer of itself than it should be."""

Verdict = Literal["better", "worse", "unclear"]


@dataclass(frozen=True)
class Comparison:
    """One candidate against the first, on the same rows.

    difference: this one's mean minus the first one's; None where the measure is only another scale of one before it.
    sign_test_p: how likely so uneven a count of better and worse rows is by chance.
    """

    difference: Estimate | None
    sign_test_p: float | None


@dataclass(frozen=True)
class Measure:
    """One number by which candidates are measured: its estimate for each, and each later one against the first."""

    name: str
    higher_is_better: bool
    num_rows: int
    estimates: tuple[Estimate, ...]
    comparisons: tuple[Comparison, ...]

    def verdict(self, index: int) -> Verdict | None:
        """Whether candidate `index` (1 or more) is better than the first: its interval excludes 0. None: not asked."""
        difference = self.comparisons[index - 1].difference
        if difference is None:
            return None
        if self.num_rows < FEWEST_ROWS or difference.low <= 0 <= difference.high:
            return "unclear"
        return "better" if (difference.low > 0) == self.higher_is_better else "worse"


@dataclass(frozen=True)
class Answered:
    """A held-out row: what was asked last, the reference, and each candidate's answer."""

    origin: Origin
    asked: str
    reference: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table of details under its title; the first row is the head."""

    title: str
    rows: list[list[str]]


class Details(ABC):
    """What some kinds of models have to show beside their measures."""

    @abstractmethod
    def tables(self) -> tuple[Table, ...]:
        """The details for people."""

    @abstractmethod
    def as_json(self) -> dict[str, object]:
        """The details as JSON values."""

    @abstractmethod
    def write_picture(self, path: Path) -> None:
        """Write them as a PNG. Raises: DiskFull."""


@dataclass(frozen=True)
class Evaluation:
    """All measures of all candidates over the rows, what is to be said about them, and the answers themselves.

    details: what there is to show beside them; None for most kinds of models.
    """

    candidates: tuple[str, ...]
    num_rows: int
    measures: tuple[Measure, ...]
    notes: tuple[str, ...]
    answers: tuple[Answered, ...]
    details: Details | None = None

    @property
    def summary(self) -> str:
        """The outcome in a sentence for each candidate after the first; for one alone, its numbers."""
        rows = f"on {self.num_rows} row{'' if self.num_rows == 1 else 's'}"
        if len(self.candidates) == 1:
            numbers = ", ".join(f"{m.name} {_number(m, m.estimates[0].value)}" for m in self.measures)
            return f"{self.candidates[0]}: {numbers} {rows}."
        return " ".join(self._sentence(index, rows) for index in range(1, len(self.candidates)))

    def _sentence(self, index: int, rows: str) -> str:
        name = self.candidates[index]
        said: dict[Verdict, list[str]] = {"better": [], "worse": [], "unclear": []}
        for measure in self.measures:
            verdict = measure.verdict(index)
            if verdict is not None:
                said[verdict].append(_said(measure, index))
        too_few = f"too few rows (fewer than {FEWEST_ROWS}) for a verdict"
        unclear = too_few if self.num_rows < FEWEST_ROWS else "no clear difference"
        parts = [f"{name} is {verdict} on {_listed(said[verdict])}" for verdict in ("better", "worse") if said[verdict]]
        if said["unclear"]:
            parts.append(f"{unclear} on {_listed(said['unclear'])}")
        if parts and parts[0].startswith(unclear):
            parts[0] = f"{name}: {parts[0]}"
        parts[0] += f" {rows}"
        return "; ".join(parts) + "."

    def as_table(self) -> list[list[str]]:
        """The measures as rows of text, the first row being the head; intervals are 95 %."""
        first = self.candidates[0]
        head = ["measure", *self.candidates, *(f"{name} - {first}" for name in self.candidates[1:]), "rows"]
        return [head, *(_table_row(measure) for measure in self.measures)]

    def as_json(self) -> dict[str, object]:
        """Everything, as JSON values: numbers that are infinite are null."""
        return {
            "candidates": list(self.candidates),
            "rows": self.num_rows,
            "summary": self.summary,
            "notes": list(self.notes),
            "measures": [self._measure_json(measure) for measure in self.measures],
            "answers": [
                {
                    "file": answered.origin.file,
                    "line": answered.origin.line,
                    "asked": answered.asked,
                    "reference": answered.reference,
                    "answers": dict(zip(self.candidates, answered.answers, strict=True)),
                }
                for answered in self.answers
            ],
            **({} if self.details is None else {"details": self.details.as_json()}),
        }

    def _measure_json(self, measure: Measure) -> dict[str, object]:
        later = enumerate(zip(self.candidates[1:], measure.comparisons, strict=True), start=1)
        return {
            "name": measure.name,
            "higher_is_better": measure.higher_is_better,
            "rows": measure.num_rows,
            "estimates": {
                name: _estimate_json(estimate)
                for name, estimate in zip(self.candidates, measure.estimates, strict=True)
            },
            "comparisons": {
                name: {
                    "against": self.candidates[0],
                    "difference": None if comparison.difference is None else _estimate_json(comparison.difference),
                    "sign_test_p": comparison.sign_test_p,
                    "verdict": measure.verdict(index),
                }
                for index, (name, comparison) in later
            },
        }


def _said(measure: Measure, index: int) -> str:
    """A measure with its change: a loss as before → after, a score as the difference and its interval."""
    difference = measure.comparisons[index - 1].difference
    assert difference is not None
    if not measure.higher_is_better:
        before, after = (_number(measure, measure.estimates[i].value) for i in (0, index))
        return f"{measure.name} ({before} → {after})"
    return f"{measure.name} ({_with_interval(difference, lambda x: f'{x:+.2f}')})"


def _table_row(measure: Measure) -> list[str]:
    estimates = [_with_interval(estimate, lambda x: _number(measure, x)) for estimate in measure.estimates]
    differences = [
        "" if c.difference is None else _with_interval(c.difference, lambda x: f"{x:+.3f}") for c in measure.comparisons
    ]
    return [measure.name, *estimates, *differences, str(measure.num_rows)]


def in_words(estimate: Estimate) -> str:
    """A number with its interval."""
    return _with_interval(estimate, lambda x: f"{x:.3f}")


def _with_interval(estimate: Estimate, text: Callable[[float], str]) -> str:
    return f"{text(estimate.value)} [{text(estimate.low)}, {text(estimate.high)}]"


def _number(measure: Measure, value: float) -> str:
    return f"{value:.4g}" if measure.name == "perplexity" else f"{value:.3f}"


def _listed(items: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _estimate_json(estimate: Estimate) -> dict[str, float | None]:
    numbers = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {name: number if math.isfinite(number) else None for name, number in numbers.items()}
