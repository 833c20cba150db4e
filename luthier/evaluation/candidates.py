"""The models that are compared, and what is told of each beside the first one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from luthier.evaluation.intervals import bootstrap_difference, sign_test
from luthier.evaluation.measure import Comparison
from luthier.models.language_model import LanguageModel
from luthier.prediction.passes import Passes, check_fits, class_logits, said_of_each
from luthier.types import Example, Record


@dataclass(frozen=True)
class Candidate:
    """A model under a name, and the adapter to use on it; None is the model as it is. shots: rows that it is shown first."""

    name: str
    model: LanguageModel
    adapter: str | None = None
    shots: tuple[Record, ...] = ()


def head_logits(
    candidates: Sequence[Candidate], examples: Sequence[Example], passes: Passes, what: str
) -> list[list[Tensor]]:
    """The logits of each candidate's head over classes, for each example. what: what they tell, for those who watch.

    Raises: DataError for a row beyond a model's context; NotFinite.
    """
    for each in candidates:
        check_fits(each.model, each.adapter, examples)
    return [
        said_of_each(each.model, each.adapter, examples, class_logits, passes, f"{each.name}: {what}")
        for each in candidates
    ]


def comparisons(values: Sequence[Sequence[float]], weights: Sequence[float] | None = None) -> tuple[Comparison, ...]:
    """Each later candidate's values, one a row, against the first one's."""
    first, found = values[0], []
    for later in values[1:]:
        changes = [after - before for before, after in zip(first, later, strict=True)]
        rises, falls = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
        difference = bootstrap_difference(first, later, weights)
        found.append(Comparison(difference, sign_test(changes), rises, falls))
    return tuple(found)
