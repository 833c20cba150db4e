"""Measures of answers from files of the user's: graders in YAML or JSON, and Python that defines metric(row, answer)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from luthier.errors import NotFound, UsageError
from luthier.evaluation.grading import Grader, grader_of, graders_in
from luthier.recipe.loading import read_yaml
from luthier.store.places import expanded


def graders_of(files: Sequence[str | Path]) -> list[Grader]:
    """The graders of all files, in their order. Raises: UsageError where a file holds none, or a name comes twice; NotFound."""
    found = [grader for file in files for grader in _graders_in(expanded(file))]
    names = [each.name for each in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"Two graders are called {twice!r}.", "Give each a name of its own.", field="name")
    return found


def _graders_in(path: Path) -> list[Grader]:
    if path.suffix != ".py":
        return graders_in(read_yaml(path).values, str(path))
    try:
        source = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NotFound(
            f"{path} cannot be read: {error}.", "Give a Python file that defines metric(row, answer)."
        ) from error
    return [grader_of({"type": "metric", "name": path.stem, "source": source})]
