"""Whether the answer fits a regular expression."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from luthier.evaluation.grading.contract import Grade, Grader, Item, Sample


def _compiles(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"is no regular expression ({error})") from None
    return text


class Pattern(Grader):
    """1 if the pattern is found (or fits the whole answer), else 0; `.` also stands for the end of a line."""

    kind: Literal["pattern"] = Field("pattern", alias="type")
    pattern: Annotated[str, AfterValidator(_compiles)] = Field(description="A regular expression as Python reads it.")
    whole: bool = Field(False, description="Whether it must fit the whole answer.")

    def grade(self, sample: Sample, item: Item) -> Grade:
        """See the class."""
        text = sample.text.strip()
        find = re.fullmatch if self.whole else re.search
        return Grade.of(find(self.pattern, text, re.DOTALL) is not None)
