"""Training objectives: one file each, and their list."""

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Discriminator, Tag

from luthier.objectives.classification import Classification
from luthier.objectives.contract import JointObjective, Objective
from luthier.objectives.embedding import Embedding
from luthier.objectives.multiple_choice import MultipleChoice
from luthier.objectives.regression import Regression
from luthier.objectives.sft import SFT
from luthier.objectives.token_classification import TokenClassification

OBJECTIVES: tuple[type[Objective], ...] = (
    SFT,
    Classification,
    Regression,
    TokenClassification,
    MultipleChoice,
    Embedding,
)


def kind_of(objective: type[Objective]) -> str:
    """The kind that names an objective in a recipe."""
    return str(objective.model_fields["kind"].default)


def _kind(value: Any) -> str:
    """The `kind` of an objective as a recipe writes it; sft where it is left out."""
    if isinstance(value, dict):
        return str(value.get("kind", "sft"))
    return value.kind if isinstance(value, Objective) else "sft"


if TYPE_CHECKING:
    AnyObjective = Objective
else:  # one of the list, told apart by its kind
    _tagged = [Annotated[objective, Tag(kind_of(objective))] for objective in OBJECTIVES]
    AnyObjective = Annotated[reduce(or_, _tagged), Discriminator(_kind)]

__all__ = [
    "OBJECTIVES",
    "SFT",
    "AnyObjective",
    "Classification",
    "Embedding",
    "JointObjective",
    "MultipleChoice",
    "Objective",
    "Regression",
    "TokenClassification",
    "kind_of",
]
