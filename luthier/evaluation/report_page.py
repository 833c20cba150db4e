"""`report.html` and the page of a comparison: what is to be said of runs as one page that opens without a network.

Style and pictures are in the page itself, and the page forbids the browser to load anything. Whatever comes of rows or of a
model's answers is escaped: it is shown and never obeyed.
"""

from __future__ import annotations

import base64
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.evaluation.metrics import best, exact_match, token_f1
from luthier.evaluation.report import NOTHING, Metrics, Told, training_lines
from luthier.objectives import SFT, Objective
from luthier.store.files import write_text

if TYPE_CHECKING:
    from jinja2 import Template

    from luthier.evaluation.verdict import Answered, Evaluation

_MOST_SAMPLES = 60

_EXACT = {
    "lost": "Right before, wrong now",
    "wrong": "Not the reference",
    "unscored": "",
    "gained": "Wrong before, right now",
    "right": "As the reference",
}
"""What became of a row, in the order in which rows are shown: failures first."""
_SCORED = {
    "lost": "{} fell",
    "wrong": "{} not at its highest",
    "unscored": "{} has no score",
    "gained": "{} rose",
    "right": "{} at its highest",
}
"""The same by the measure that was asked for."""

_SAYS_OF_RUNS = {
    "lost": "The first run is right, the last one not",
    "wrong": "Neither the first run nor the last",
    "unscored": "",
    "gained": "The last run is right, the first one not",
    "right": "Both as the reference",
}
"""The same where the last of several runs is compared with the first."""


@dataclass(frozen=True)
class RunPage:
    """What a page says of its run beside numbers: facts in order, all settings as YAML, the machine, and commands to repeat it."""

    name: str
    facts: Mapping[str, str]
    settings: str
    environment: Mapping[str, Any]
    commands: Sequence[str]


@dataclass(frozen=True)
class ComparisonPage:
    """What a page says of several runs, beside curves and answers. All tables begin with their head.

    differences: the settings that are not the same in all. evaluated: what each run's own evaluation said; empty where none has one.
    command: what made the page.
    """

    title: str
    numbers: list[list[str]]
    differences: list[list[str]]
    evaluated: list[list[str]]
    command: str


@dataclass(frozen=True)
class Sample:
    """A held-out row as the page shows it, by the answer of the model that it is about.

    score: by the measure that was asked for, else 1 where it is the reference; f1: how near it comes to the reference.
    """

    outcome: str
    says: str
    scored: str
    origin: str
    asked: str
    reference: str
    answers: tuple[tuple[str, str], ...]
    score: float
    f1: float


def write_page(
    path: Path,
    page: RunPage,
    metrics: Metrics,
    plots: Sequence[Path],
    evaluation: Evaluation | None = None,
    *,
    objective: type[Objective] = SFT,
    told: Told = NOTHING,
) -> None:
    """Write a run's page to `path`. plots: PNGs to put into it. told: what else there is to show. Raises: DiskFull."""
    samples = () if evaluation is None else samples_of(evaluation)
    text = _template("report.html.jinja").render(
        page=page,
        evaluation=evaluation,
        told=told,
        training=training_lines(metrics, objective),
        plots=[base64.b64encode(plot.read_bytes()).decode("ascii") for plot in plots],
        samples=samples[:_MOST_SAMPLES],
        num_samples=len(samples),
        counts=_counts(samples),
    )
    write_text(path, text + "\n")


def write_model_page(path: Path, name: str, evaluation: Evaluation, command: str) -> None:
    """Write the page of a model of no run to `path`. command: what measured it. Raises: DiskFull."""
    samples = samples_of(evaluation)
    text = _template("model.html.jinja").render(
        name=name,
        evaluation=evaluation,
        command=command,
        samples=samples[:_MOST_SAMPLES],
        num_samples=len(samples),
        counts=_counts(samples),
    )
    write_text(path, text + "\n")


def write_comparison_page(path: Path, page: ComparisonPage, curves: bytes, evaluation: Evaluation | None) -> None:
    """Write the page of several runs to `path`. curves: a PNG. evaluation: all of them on the same rows. Raises: DiskFull."""
    samples = () if evaluation is None else samples_of(evaluation, _SAYS_OF_RUNS)
    text = _template("comparison.html.jinja").render(
        page=page,
        evaluation=evaluation,
        curves=base64.b64encode(curves).decode("ascii"),
        samples=samples[:_MOST_SAMPLES],
        num_samples=len(samples),
        counts=_counts(samples),
    )
    write_text(path, text + "\n")


@functools.cache
def _template(name: str) -> Template:
    """A page, made ready once."""
    from jinja2 import (  # a moment that commands without a page need not spend
        Environment,
        PackageLoader,
        StrictUndefined,
    )

    templates = Environment(
        loader=PackageLoader("luthier.evaluation", "pages"), autoescape=True, undefined=StrictUndefined
    )
    return templates.get_template(name)


def samples_of(evaluation: Evaluation, exact: Mapping[str, str] = _EXACT) -> list[Sample]:
    """The answered rows, failures of the model that it is about first; among rows that came out alike the lowest score, then the answer
    farthest from the reference, first.

    What fails is told by the measure that was asked for, else by whether the answer is the reference, in the words of `exact`.
    """
    candidates, found = evaluation.candidates, evaluation.scores
    judged = len(candidates) - 1 if evaluation.subject is None else candidates.index(evaluation.subject)
    of_rows = tuple(map(_matches, evaluation.answers)) if found is None else found.of_rows
    says = exact if found is None else {outcome: text.format(found.name) for outcome, text in _SCORED.items()}
    highest = _highest(of_rows)
    samples = []
    for answered, scores in zip(evaluation.answers, of_rows, strict=True):
        first, own = scores[0], scores[judged]
        outcome = _outcome(first, own, highest)
        f1 = best(token_f1, answered.answers[judged], answered.references) or 0.0
        samples.append(
            Sample(
                outcome,
                says[outcome],
                "" if found is None else " → ".join(_shown(score) for score in dict.fromkeys((first, own))),
                str(answered.origin),
                answered.asked,
                answered.reference,
                tuple(zip(candidates, answered.answers, strict=True)),
                0.0 if own is None else own,
                f1,
            )
        )
    order = {outcome: place for place, outcome in enumerate(says)}
    return sorted(samples, key=lambda sample: (order[sample.outcome], sample.score, sample.f1))


def _matches(answered: Answered) -> tuple[float | None, ...]:
    return tuple(best(exact_match, answer, answered.references) for answer in answered.answers)


def _highest(of_rows: Sequence[Sequence[float | None]]) -> float:
    """The end of a scale from 0 to 1; of any other the highest score that was given."""
    given = [score for scores in of_rows for score in scores if score is not None]
    return 1.0 if all(0 <= score <= 1 for score in given) else max(given)


def _outcome(first: float | None, own: float | None, highest: float) -> str:
    """What became of a row, by the scores of the first model's answer and of the one that the page is about."""
    if own is None:
        return "unscored"
    if first is not None and own != first:
        return "gained" if own > first else "lost"
    return "right" if own >= highest else "wrong"


def _shown(score: float | None) -> str:
    return "none" if score is None else f"{score:.3g}"


def _counts(samples: Sequence[Sample]) -> str:
    """How many rows came out in which way, failures first, as the samples stand."""
    counted = Counter(sample.says for sample in samples)
    return " · ".join(f"{says}: {number}" for says, number in counted.items()) + "."
