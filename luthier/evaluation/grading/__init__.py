"""Graders: what an answer is worth, by rules, by code, or by a model. `AnyGrader` is what a file may name by `kind` or `type`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from luthier.errors import UsageError
from luthier.evaluation.grading.contract import Aids, Ask, Grade, Grader, Item, JudgeSampling, Sample
from luthier.evaluation.grading.kinds import OneGrader
from luthier.evaluation.grading.multi import Multi

__all__ = [
    "Aids", "AnyGrader", "Ask", "Grade", "Grader", "Item", "JudgeSampling", "Multi", "Sample", "grader_of", "graders_in"
]  # fmt: skip

AnyGrader = Annotated[OneGrader | Multi, Field(discriminator="kind")]
_ADAPTER: TypeAdapter[OneGrader | Multi] = TypeAdapter(AnyGrader)


def grader_of(values: Mapping[str, Any]) -> Grader:
    """The grader that plain values describe. Raises: UsageError that names the field at fault."""
    try:
        return _ADAPTER.validate_python(dict(values))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        # The first place is the kind itself: the union's choice.
        place = ".".join(str(part) for part in fault["loc"][1:])
        context = fault.get("ctx", {})
        field = ".".join(part for part in (place, str(context.get("field", ""))) if part) or "type"
        found = str(context.get("message", context.get("error", fault["msg"]))).removesuffix(".")
        raise UsageError(f"The grader's {field}: {found}.", "docs/grading.md shows each kind.", field=field) from error


def graders_in(values: Any, file: str) -> list[Grader]:
    """The graders of a file's values: one, or a list. Raises: UsageError."""
    found = [
        grader_of(each) if isinstance(each, Mapping) else None
        for each in (values if isinstance(values, list) else [values])
    ]
    graders = [grader for grader in found if grader is not None]
    if not graders or len(graders) < len(found):
        raise UsageError(
            f"{file} holds no grader.", "A grader is a mapping with a type; docs/grading.md shows each kind."
        )
    return graders
