"""Every objective that a recipe can name: those that learn from rows, and those that learn from the model's own answers."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Discriminator, Tag

from luthier.errors import UsageError
from luthier.objectives import OBJECTIVES, Objective, kind_of
from luthier.rlhf import ALGORITHMS

KNOWN_OBJECTIVES: tuple[type[Objective], ...] = (*OBJECTIVES, *ALGORITHMS)


def objective_of(kind: str, field: str = "objective.kind") -> type[Objective]:
    """The objective of a kind. Raises: UsageError, naming those that there are."""
    for objective in KNOWN_OBJECTIVES:
        if kind_of(objective) == kind:
            return objective
    known = ", ".join(kind_of(objective) for objective in KNOWN_OBJECTIVES)
    raise UsageError(f"There is no objective {kind!r}.", f"Choose one of {known}.", field=field)


def _kind(value: Any) -> str:
    """The `kind` of an objective as a recipe writes it; sft where it is left out."""
    if isinstance(value, dict):
        return str(value.get("kind", "sft"))
    return value.kind if isinstance(value, Objective) else "sft"


if TYPE_CHECKING:
    AnyObjective = Objective
else:  # one of the list, told apart by its kind
    _tagged = [Annotated[objective, Tag(kind_of(objective))] for objective in KNOWN_OBJECTIVES]
    AnyObjective = Annotated[reduce(or_, _tagged), Discriminator(_kind)]
