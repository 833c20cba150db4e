"""Training objectives: one file each, and their list."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Discriminator, Tag

from luthier.objectives.classification import Classification
from luthier.objectives.contract import Objective
from luthier.objectives.sft import SFT

OBJECTIVES: tuple[type[Objective], ...] = (SFT, Classification)


def _kind(value: Any) -> str:
    """The `kind` of an objective as a recipe writes it; sft where it is left out."""
    if isinstance(value, dict):
        return str(value.get("kind", "sft"))
    return value.kind if isinstance(value, Objective) else "sft"


if TYPE_CHECKING:
    AnyObjective = Objective
else:  # one of the list, told apart by its kind
    AnyObjective = Annotated[
        Annotated[SFT, Tag("sft")] | Annotated[Classification, Tag("classification")], Discriminator(_kind)
    ]

__all__ = ["OBJECTIVES", "SFT", "AnyObjective", "Classification", "Objective"]
