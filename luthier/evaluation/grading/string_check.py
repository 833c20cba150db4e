"""Whether the answer is, or holds, a text."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from luthier.evaluation.grading.contract import Grade, Grader, Item, Sample
from luthier.evaluation.grading.templates import Missing, Template, filled


class StringCheck(Grader):
    """1 if the input stands in the given relation to the reference, else 0; white space at the ends does not count."""

    kind: Literal["string_check"] = Field("string_check", alias="type")
    input: Template = Field("{{ sample.output_text }}", description="What is checked.")
    reference: Template = Field(description="What it is compared with, such as {{ item.answer }}.")
    operation: Literal["eq", "ne", "like", "ilike"] = Field(
        "eq", description="eq: equal; ne: not equal; like: holds it; ilike: holds it, whatever the case."
    )

    def grade(self, sample: Sample, item: Item) -> Grade:
        """See the class."""
        try:
            given, wanted = (filled(text, sample, item).strip() for text in (self.input, self.reference))
        except Missing as missing:
            return Grade(None, str(missing))
        if self.operation in ("eq", "ne"):
            return Grade.of((given == wanted) == (self.operation == "eq"))
        if self.operation == "ilike":
            given, wanted = given.casefold(), wanted.casefold()
        return Grade.of(wanted in given)
