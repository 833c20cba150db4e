"""How commands are asked for measures of answers, and how they tell what came of them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.output import aligned, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luthier.evaluation.grading import Grader
    from luthier.evaluation.verdict import Evaluation

SHOWN = 3
_SECONDS_BETWEEN_LINES = 10.0

GraderFiles = Annotated[
    list[Path] | None,
    typer.Option("--grader", help="A further measure of the answers: a YAML or JSON file with a grader; repeatable."),
]
Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        metavar="NAME|FILE.py",
        help="A further measure of the answers: accuracy, macro-f1, rouge-1, rouge-2, bleu, chrf, json-valid, json-fields, "
        "number, or a Python file that defines metric(row, answer); repeatable.",
    ),
]


def graders_of(files: Sequence[Path] | None, metrics: Sequence[str] | None) -> list[Grader]:
    """The graders of all files, and those that measure by a Python file. Raises: UsageError, NotFound."""
    from luthier.recipe.grader_files import graders_of as graders_in_files

    own = [name for name in metrics or () if name.endswith(".py")]
    return graders_in_files([*(files or ()), *own])


def names_of(metrics: Sequence[str] | None) -> list[str]:
    """The metrics that go by a name."""
    return [name for name in metrics or () if not name.endswith(".py")]


class ProgressLines:
    """Says how far each task is, at most every few seconds; several threads may call it."""

    def __init__(self) -> None:
        self._said_at = time.monotonic()

    def __call__(self, task: str, done: int, total: int) -> None:
        """Take what is being done, how much of it is done, and how much there is."""
        now = time.monotonic()
        if now - self._said_at >= _SECONDS_BETWEEN_LINES:
            self._said_at = now
            say(f"{task}: {done} of {total}")


def evaluation_text(evaluation: Evaluation, shown: int = SHOWN) -> str:
    """The measures, what they come to, and so many of the answers."""
    lines = [*aligned(evaluation.as_table()), "", *evaluation.sentences, *evaluation.remarks]
    for table in evaluation.tables:
        lines += ["", table.title, *aligned(table.rows)]
    for answered in evaluation.answers[:shown]:
        lines += ["", f"{answered.origin}: {answered.asked}", f"  reference: {answered.reference}"]
        lines += [f"  {name}: {answer}" for name, answer in zip(evaluation.candidates, answered.answers, strict=True)]
    return "\n".join(lines)
