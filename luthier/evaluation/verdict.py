"""What an evaluation found, and how it is said: as JSON, as a table, and in one sentence."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.evaluation.contamination import Contamination
from luthier.evaluation.forgetting.found import Forgetting
from luthier.evaluation.intervals import Estimate
from luthier.evaluation.measure import Measure
from luthier.evaluation.outcome import Outcome, outcome_of, with_interval
from luthier.evaluation.safety.found import Safety
from luthier.types import Origin


@dataclass(frozen=True)
class Answered:
    """A held-out row: what was asked last, the reference, and each candidate's answer. others: further right answers."""

    origin: Origin
    asked: str
    reference: str
    answers: tuple[str, ...]
    others: tuple[str, ...] = ()

    @property
    def references(self) -> tuple[str, ...]:
        """All right answers, the row's own first."""
        return (self.reference, *self.others)


@dataclass(frozen=True)
class RowScores:
    """What a measure makes of each answer, higher being better. of_rows: of each row a score a candidate; None where there is none."""

    name: str
    of_rows: tuple[tuple[float | None, ...], ...]


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

    subject: the candidate that the evaluation is about; None: the last one. forgetting: what candidates know beyond the rows;
    None where that was not asked. contamination: which rows stand in the training rows; None where that was not looked for.
    details: what there is to show beside them; None for most kinds of models. safety: refusals, stereotypes and rude words; None
    where they were not looked for. scores: of each answered row by the measure that was asked for; None where none was.
    """

    candidates: tuple[str, ...]
    num_rows: int
    measures: tuple[Measure, ...]
    notes: tuple[str, ...]
    answers: tuple[Answered, ...]
    details: Details | None = None
    subject: str | None = None
    forgetting: Forgetting | None = None
    contamination: Contamination | None = None
    safety: Safety | None = None
    scores: RowScores | None = None

    @property
    def outcomes(self) -> dict[str, Outcome]:
        """What it comes to for each candidate after the first."""
        return {
            name: outcome_of(self.measures, index, self.candidates, self.num_rows, self.forgetting)
            for index, name in enumerate(self.candidates)
            if index
        }

    @property
    def outcome(self) -> Outcome | None:
        """What it comes to for the candidate that it is about; None for one alone."""
        return self.outcomes.get(self.subject or self.candidates[-1])

    @property
    def sentences(self) -> tuple[str, ...]:
        """What it comes to, a sentence for each candidate after the first; for one alone, its numbers."""
        if len(self.candidates) > 1:
            return tuple(outcome.sentence for outcome in self.outcomes.values())
        rows = f"on {self.num_rows} row{'' if self.num_rows == 1 else 's'}"
        numbers = ", ".join(f"{m.name} {_number(m, m.estimates[0].value)}" for m in self.measures)
        return (f"{self.candidates[0]}: {numbers} {rows}.",)

    @property
    def summary(self) -> str:
        """The sentences as one text."""
        return " ".join(self.sentences)

    @property
    def remarks(self) -> tuple[str, ...]:
        """All that is to be said beside the sentences: of the rows, of the probe of what was known, and of safety."""
        probed = () if self.forgetting is None else self.forgetting.notes
        if self.safety is not None:
            probed = (*probed, *self.safety.said(self.candidates), *self.safety.notes)
        return (*self.notes, *probed)

    @property
    def tables(self) -> tuple[Table, ...]:
        """The details for people; none for most kinds of models."""
        return () if self.details is None else self.details.tables()

    def as_table(self) -> list[list[str]]:
        """The measures as rows of text, the first row being the head; intervals are 95 %."""
        first = self.candidates[0]
        head = ["measure", *self.candidates, *(f"{name} - {first}" for name in self.candidates[1:]), "rows"]
        parts = () if self.forgetting is None else self.forgetting.parts
        probed = () if self.safety is None else self.safety.parts
        return [head, *(_table_row(measure) for measure in (*self.measures, *parts, *probed))]

    def as_json(self) -> dict[str, object]:
        """Everything, as JSON values: numbers that are infinite are null."""
        return {
            "candidates": list(self.candidates),
            "rows": self.num_rows,
            "verdict": None if self.outcome is None else self.outcome.kind,
            "verdicts": {name: {"verdict": o.kind, "sentence": o.sentence} for name, o in self.outcomes.items()},
            "summary": self.summary,
            "notes": list(self.notes),
            "metrics": {measure.name: self._values_json(measure) for measure in self.measures},
            "intervals": {measure.name: self._intervals_json(measure) for measure in self.measures},
            "forgetting": self._forgetting_json(),
            "contamination": None if self.contamination is None else self.contamination.as_json(),
            "measures": [self._measure_json(measure) for measure in self.measures],
            "answers": [
                {
                    "file": answered.origin.file,
                    "line": answered.origin.line,
                    "asked": answered.asked,
                    "reference": answered.reference,
                    **({"references": list(answered.references)} if answered.others else {}),
                    "answers": dict(zip(self.candidates, answered.answers, strict=True)),
                }
                for answered in self.answers
            ],
            **({} if self.safety is None else {"safety": self._probed_json(self.safety.parts, self.safety.notes)}),
            **({} if self.details is None else {"details": self.details.as_json()}),
        }

    def _values_json(self, measure: Measure) -> dict[str, float | None]:
        """The measure's value for each candidate."""
        pairs = zip(self.candidates, measure.estimates, strict=True)
        return {name: _finite(estimate.value) for name, estimate in pairs}

    def _intervals_json(self, measure: Measure) -> dict[str, list[float | None]]:
        """The measure's interval for each candidate, and for the difference of each later one to the first."""
        found = {name: _bounds(each) for name, each in zip(self.candidates, measure.estimates, strict=True)}
        for name, comparison in zip(self.candidates[1:], measure.comparisons, strict=True):
            if comparison.difference is not None:
                found[f"{name} - {self.candidates[0]}"] = _bounds(comparison.difference)
        return found

    def _forgetting_json(self) -> dict[str, object] | None:
        if self.forgetting is None:
            return None
        probed = self._probed_json(self.forgetting.parts, self.forgetting.notes)
        return {"verdicts": self.forgetting.verdicts(self.candidates), **probed}

    def _probed_json(self, parts: Sequence[Measure], notes: Sequence[str]) -> dict[str, object]:
        return {
            "metrics": {part.name: self._values_json(part) for part in parts},
            "intervals": {part.name: self._intervals_json(part) for part in parts},
            "measures": [self._measure_json(part) for part in parts],
            "notes": list(notes),
        }

    def _measure_json(self, measure: Measure) -> dict[str, object]:
        later = enumerate(zip(self.candidates[1:], measure.comparisons, strict=True), start=1)
        return {
            "name": measure.name,
            "higher_is_better": measure.higher_is_better,
            "rows": measure.num_rows,
            "margin": measure.margin,
            "estimates": {
                name: _estimate_json(estimate)
                for name, estimate in zip(self.candidates, measure.estimates, strict=True)
            },
            "comparisons": {
                name: {
                    "against": self.candidates[0],
                    "difference": None if comparison.difference is None else _estimate_json(comparison.difference),
                    "sign_test_p": comparison.sign_test_p,
                    "rises": comparison.rises,
                    "falls": comparison.falls,
                    "verdict": measure.verdict(index),
                }
                for index, (name, comparison) in later
            },
        }


def _table_row(measure: Measure) -> list[str]:
    estimates = [with_interval(estimate, lambda x: _number(measure, x)) for estimate in measure.estimates]
    differences = [
        "" if c.difference is None else with_interval(c.difference, lambda x: f"{x:+.3f}") for c in measure.comparisons
    ]
    return [measure.name, *estimates, *differences, str(measure.num_rows)]


def in_words(estimate: Estimate) -> str:
    """A number with its interval."""
    return with_interval(estimate, lambda x: f"{x:.3f}")


def _number(measure: Measure, value: float) -> str:
    return f"{value:.4g}" if measure.name == "perplexity" else f"{value:.3f}"


def _estimate_json(estimate: Estimate) -> dict[str, float | None]:
    numbers = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {name: _finite(number) for name, number in numbers.items()}


def _bounds(estimate: Estimate) -> list[float | None]:
    return [_finite(estimate.low), _finite(estimate.high)]


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
