"""Whether the answer is JSON of a given form, and how many fields are right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from luthier.evaluation.grading.contract import Aids, Grade, Grader, Item, Sample
from luthier.evaluation.grading.each import grades_of_each
from luthier.evaluation.grading.libraries import needed
from luthier.evaluation.grading.templates import Missing, Template, filled
from luthier.evaluation.metrics import field_accuracy, json_object
from luthier.types import fault_at

_CHECK = """
from jsonschema import Draft202012Validator

def checking(given):
    return Draft202012Validator(given).is_valid
"""


class JsonForm(Grader):
    """1 if the answer as a whole is JSON that a JSON schema accepts, else 0."""

    kind: Literal["json_schema"] = Field("json_schema", alias="type")
    json_schema: dict[str, Any] = Field(alias="schema", description="A JSON schema, draft 2020-12.")

    @field_validator("json_schema", mode="before")
    @classmethod
    def _as_json(cls, value: Any) -> Any:
        """Lists as JSON has them: a recipe hands over tuples."""
        return json.loads(json.dumps(value))

    @model_validator(mode="after")
    def _is_schema(self) -> Self:
        library = needed("jsonschema")
        try:
            library.Draft202012Validator.check_schema(self.json_schema)
        except library.SchemaError as error:
            raise fault_at("schema", f"is no JSON schema ({error.message})") from None
        return self

    def grade(self, sample: Sample, item: Item) -> Grade:
        """See the class."""
        return self.grade_all([sample], [item], Aids())[0]

    def grade_all(self, samples: Sequence[Sample], items: Sequence[Item], aids: Aids) -> list[Grade]:
        """See the class. The text `null` is JSON."""
        is_json = [sample.json is not None or sample.text.strip() == "null" for sample in samples]
        values = [sample.json for sample, one in zip(samples, is_json, strict=True) if one]
        found = iter(self._grades(values))
        return [next(found) if one else Grade.of(0) for one in is_json]

    def _grades(self, values: Sequence[Any]) -> list[Grade]:
        if '"pattern' in json.dumps(self.json_schema):  # some texts hold a pattern up without end
            return grades_of_each(_CHECK, self.json_schema, values, "a pattern of the schema")
        is_valid = needed("jsonschema").Draft202012Validator(self.json_schema).is_valid
        return [Grade.of(is_valid(value)) for value in values]


class JsonFields(Grader):
    """The share of the reference's fields that the answer, a JSON object, gives with the same value."""

    kind: Literal["json_fields"] = Field("json_fields", alias="type")
    reference: Template = Field(description="A JSON object, such as {{ item.completion }}.")

    def grade(self, sample: Sample, item: Item) -> Grade:
        """See the class."""
        try:
            wanted = json_object(filled(self.reference, sample, item))
        except Missing as missing:
            return Grade(None, str(missing))
        return (
            Grade.of(field_accuracy(sample.text, wanted)) if wanted else Grade(None, "the reference is no JSON object")
        )
