"""Rows of judgments: which of two answers to a question is better, or what score each was given.

What files may hold, by their columns (the first name is the one that is asked for where none is there):

    model_1 model_2 verdict   verdict 1: the first is better, 2: the second, 3: as good. Also A, B, C, first, second, tie,
                              model_1, model_2, model_a, model_b, and a system's own name.
    model_1 model_2 score_1 score_2   a score for each, of which the greater is the better one.

    responses choice tie shown_order   as `luthier judge` writes them (`luthier.evaluation.judged.records`).

Beside them: question_id (judgments of one question are not independent) and judge. `model_1` is the one shown first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from luthier.data.reading import Row
from luthier.errors import DataError, UsageError
from luthier.evaluation.judged.blind import prompt_key
from luthier.evaluation.judged.records import Record, is_record, record_of

FIRST = ("model_1", "model_a", "file_model_1")
SECOND = ("model_2", "model_b", "file_model_2")
VERDICT = ("verdict", "winner", "preference")
QUESTION = ("question_id", "question", "prompt")
_OUTCOMES = {
    **dict.fromkeys(("1", "a", "first", "model_1", "model_a"), 1.0),
    **dict.fromkeys(("2", "b", "second", "model_2", "model_b"), 0.0),
    **dict.fromkeys(("3", "c", "tie", "both", "tie (bothbad)"), 0.5),
}


@dataclass(frozen=True)
class Judgment:
    """One verdict. outcome: 1 if the answer shown first is better, 0 if the second is, 0.5 if they are as good."""

    question: str
    first: str
    second: str
    outcome: float
    judge: str = ""

    @property
    def turned(self) -> Judgment:
        """The same verdict with the two answers named the other way round."""
        return replace(self, first=self.second, second=self.first, outcome=1 - self.outcome)


@dataclass(frozen=True)
class Scores:
    """One judge's scores of two answers to a question, in the order in which they were shown."""

    question: str
    first: str
    second: str
    score_first: float
    score_second: float
    judge: str = ""

    @property
    def swapped(self) -> Scores:
        """The same with each score given to the other one."""
        return replace(self, score_first=self.score_second, score_second=self.score_first)

    def names_any(self, patterns: Iterable[str]) -> bool:
        """Whether one of the two systems is called as a pattern of the shell says."""
        return any(fnmatchcase(name, pattern) for pattern in patterns for name in (self.first, self.second))

    @property
    def judgment(self) -> Judgment:
        """What the scores say of the two: the greater one is better."""
        outcome = 0.5 + 0.5 * ((self.score_first > self.score_second) - (self.score_first < self.score_second))
        return Judgment(self.question, self.first, self.second, outcome, self.judge)


@dataclass(frozen=True)
class Judged:
    """All that a file holds: verdicts, the scores behind them where scores were given, and rows without a verdict.

    num_alike: judgments of two answers of one system, which say nothing of systems. num_swapped: rows whose two scores were swapped.
    """

    judgments: tuple[Judgment, ...]
    scores: tuple[Scores, ...]
    num_without: int
    num_alike: int = 0
    num_swapped: int = 0

    @property
    def systems(self) -> tuple[str, ...]:
        """The systems that were judged, by name."""
        return tuple(sorted({name for one in self.judgments for name in (one.first, one.second)}))


def judged_from(rows: Iterable[Row], swap_scores: Sequence[str] = ()) -> Judged:
    """The judgments in rows; rows whose verdict is none of those known are counted, not guessed at.

    swap_scores: patterns of the shell; in rows with a system that is called so, score_1 is of model_2, and score_2 of model_1.

    Raises: UsageError for a pattern that no row with scores answers to; DataError for rows that lack a column, compare a system with itself, or hold a score that is no number; and
    where no row holds a verdict.
    """
    judgments: list[Judgment] = []
    scores: list[Scores] = []
    num_without = num_alike = num_swapped = 0
    for row in rows:
        found = _of_row(row)
        if isinstance(found, Scores):
            if found.names_any(swap_scores):
                found, num_swapped = found.swapped, num_swapped + 1
            scores.append(found)
            found = found.judgment
        if found is None:
            num_without += 1
        elif found.first == found.second:
            num_alike += 1
        else:
            judgments.append(found)
    if not judgments and num_alike:
        raise DataError(
            f"all {num_alike:,} judgments are of two answers of one system, so there is nothing to rank.",
            "Judge answers of two systems or more: 'luthier judge MODEL MODEL --prompts FILE'.",
        )
    if not judgments:
        raise DataError(
            f"none of {num_without:,} rows holds a verdict.", "Give 1, 2 or 3 (as good) in the column `verdict`."
        )
    _check_patterns(swap_scores, scores)
    return Judged(tuple(judgments), tuple(scores), num_without, num_alike, num_swapped)


def _check_patterns(patterns: Sequence[str], scores: Sequence[Scores]) -> None:
    """Raise UsageError for a pattern of swapped scores that no row with scores answers to."""
    for pattern in patterns:
        if not any(one.names_any((pattern,)) for one in scores):
            names = sorted({name for one in scores for name in (one.first, one.second)})
            mend = f"Scored are {', '.join(names)}." if names else "No row has score_1 and score_2; leave it out."
            raise UsageError(f"--swap-scores: no system with scores is called like {pattern!r}.", mend)


def judgment_of(record: Record) -> Judgment | None:
    """What a person said of two answers, as a verdict on who wrote them; None where it was skipped."""
    if record.outcome is None:
        return None
    first, second = record.shown
    return Judgment(prompt_key(record.pair.prompt), first.model, second.model, record.outcome, record.annotator)


def _of_row(row: Row) -> Judgment | Scores | None:
    values = row.values
    if is_record(values):
        return judgment_of(record_of(row))
    first, second = (str(_value(row, names)).strip() for names in (FIRST, SECOND))
    if first == second:
        raise _fault(row, f"compares {first!r} with itself.", "Name two systems.", FIRST[0])
    question = str(next((values[name] for name in QUESTION if values.get(name) is not None), row.origin.line))
    judge = str(values.get("judge") or "")
    if "score_1" in values or "score_2" in values:
        score_1, score_2 = (_score(row, name) for name in ("score_1", "score_2"))
        return Scores(question, first, second, score_1, score_2, judge)
    outcome = _outcome(_value(row, VERDICT), first, second)
    return None if outcome is None else Judgment(question, first, second, outcome, judge)


def _outcome(verdict: object, first: str, second: str) -> float | None:
    word = str(verdict).strip()
    if word in (first, second):
        return float(word == first)
    return _OUTCOMES.get(word.lower().removesuffix(".0"))


def _score(row: Row, name: str) -> float:
    try:
        score = float(row.values[name])
    except (KeyError, TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise _fault(row, f"{row.values.get(name)!r} is no score.", "Give a number for each of the two.", name)
    return score


def _value(row: Row, names: Sequence[str]) -> Any:
    given: Mapping[str, Any] = row.values
    name = next((name for name in names if given.get(name) is not None), None)
    if name is None:
        found = f"there is no column {names[0]!r}; there are {', '.join(map(repr, given))}."
        raise _fault(row, found, f"Name it {' or '.join(names)}.", names[0])
    return given[name]


def _fault(row: Row, found: str, mend: str, field: str) -> DataError:
    return DataError(found, mend, file=row.origin.file, line=row.origin.line, field=field)
