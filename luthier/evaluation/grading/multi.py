"""One score made of several by a formula."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import AliasChoices, Field, field_validator, model_validator

from luthier.evaluation.grading.contract import Aids, Grade, Grader, Item, Sample
from luthier.evaluation.grading.formula import Formula
from luthier.evaluation.grading.kinds import OneGrader
from luthier.types import fault_at


class Multi(Grader):
    """A number made of the scores of several graders by a formula (`formula.py`), such as `0.8 * right + 0.2 * short`."""

    kind: Literal["multi"] = Field("multi", alias="type")
    graders: dict[str, OneGrader] = Field(min_length=1, description="Each under the name that the formula calls it by.")
    formula: str = Field(
        validation_alias=AliasChoices("formula", "calculate_output"), description="What the score is, from the names."
    )

    @field_validator("graders", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        """OpenAI's types also write one grader alone; it goes by its own name."""
        is_one = isinstance(value, Mapping) and isinstance(value.get("type", value.get("kind")), str)
        return {str(value.get("name", "score")): value} if is_one else value

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        try:
            names = Formula(self.formula).names
        except ValueError as error:
            raise fault_at("formula", str(error)) from None
        if unknown := sorted(names - self.graders.keys()):
            raise fault_at("formula", f"names {unknown[0]!r}, and the graders are {', '.join(self.graders)}")
        return self

    @property
    def asked_models(self) -> tuple[str | None, ...]:
        """Those that one of them asks."""
        return tuple(model for grader in self.graders.values() for model in grader.asked_models)

    def grade(self, sample: Sample, item: Item) -> Grade:
        """The grade of one answer."""
        return self.grade_all([sample], [item], Aids(processes=1))[0]

    def grade_all(self, samples: Sequence[Sample], items: Sequence[Item], aids: Aids) -> list[Grade]:
        """All graders on all answers, and the formula on each answer's scores."""
        columns = {name: grader.grade_all(samples, items, aids) for name, grader in self.graders.items()}
        formula = Formula(self.formula)
        return [
            _combined(formula, {name: grades[row] for name, grades in columns.items()}) for row in range(len(samples))
        ]


def _combined(formula: Formula, grades: Mapping[str, Grade]) -> Grade:
    parts = {name: grade.score for name, grade in grades.items()}
    numbers = {name: score for name, score in parts.items() if score is not None}
    if missing := sorted(formula.names - numbers.keys()):
        first = grades[missing[0]]
        is_unjudged = any(grades[name].is_unjudged for name in missing)
        return Grade(None, f"{missing[0]}: {first.fault}", parts, is_unjudged)
    try:
        value = formula.value(numbers)
    except (ArithmeticError, ValueError) as error:
        return Grade(None, f"the formula has no value: {error}", parts)
    grade = Grade.of(value)
    return Grade(grade.score, grade.fault, parts)
