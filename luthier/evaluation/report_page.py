"""`report.html`: what is to be said of a run as one page that opens without a network.

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

_SAYS = {
    "lost": "Right before, wrong now",
    "wrong": "Not the reference",
    "gained": "Wrong before, right now",
    "right": "As the reference",
}
"""What became of a row, in the order in which rows are shown: failures first."""


@dataclass(frozen=True)
class RunPage:
    """What a page says of its run beside numbers: facts in order, all settings as YAML, the machine, and commands to repeat it."""

    name: str
    facts: Mapping[str, str]
    settings: str
    environment: Mapping[str, Any]
    commands: Sequence[str]


@dataclass(frozen=True)
class Sample:
    """A held-out row as the page shows it. f1: how near the answer of the model that it is about comes to the reference."""

    outcome: str
    says: str
    origin: str
    asked: str
    reference: str
    answers: tuple[tuple[str, str], ...]
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
    text = _template().render(
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


@functools.cache
def _template() -> Template:
    """The page, made ready once."""
    from jinja2 import (  # a moment that commands without a page need not spend
        Environment,
        PackageLoader,
        StrictUndefined,
    )

    templates = Environment(
        loader=PackageLoader("luthier.evaluation", "pages"), autoescape=True, undefined=StrictUndefined
    )
    return templates.get_template("report.html.jinja")


def samples_of(evaluation: Evaluation) -> list[Sample]:
    """The answered rows, failures of the model that it is about first; among rows that came out alike, the answer farthest from the reference first."""
    order = {outcome: place for place, outcome in enumerate(_SAYS)}
    candidates = evaluation.candidates
    judged = len(candidates) - 1 if evaluation.subject is None else candidates.index(evaluation.subject)
    samples = [_sample(answered, candidates, judged) for answered in evaluation.answers]
    return sorted(samples, key=lambda sample: (order[sample.outcome], sample.f1))


def _sample(answered: Answered, candidates: Sequence[str], judged: int) -> Sample:
    is_right = [best(exact_match, answer, answered.references) == 1 for answer in answered.answers]
    was_right = len(is_right) > 1 and is_right[0]
    if is_right[judged]:
        outcome = "right" if was_right or len(is_right) == 1 else "gained"
    else:
        outcome = "lost" if was_right else "wrong"
    answers = tuple(zip(candidates, answered.answers, strict=True))
    f1 = best(token_f1, answered.answers[judged], answered.references) or 0.0
    return Sample(outcome, _SAYS[outcome], str(answered.origin), answered.asked, answered.reference, answers, f1)


def _counts(samples: Sequence[Sample]) -> str:
    counted = Counter(sample.says for sample in samples)
    return " · ".join(f"{says}: {counted[says]}" for says in _SAYS.values() if counted[says]) + "."
