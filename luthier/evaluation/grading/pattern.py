"""Whether the answer fits a regular expression."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from luthier.evaluation.grading.contract import Aids, Grade, Grader, Item, Sample
from luthier.evaluation.grading.each import grades_of_each

_CHECK = """
import re

def checking(given):
    find = re.fullmatch if given["whole"] else re.search
    return lambda text: find(given["pattern"], text, re.DOTALL) is not None
"""


def _compiles(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"is no regular expression ({error})") from None
    return text


class Pattern(Grader):
    """1 if the pattern is found (or fits the whole answer), else 0; `.` also stands for the end of a line.

    An answer that holds the search up for more than a second has no score.
    """

    kind: Literal["pattern"] = Field("pattern", alias="type")
    pattern: Annotated[str, AfterValidator(_compiles)] = Field(description="A regular expression as Python reads it.")
    whole: bool = Field(False, description="Whether it must fit the whole answer.")

    def grade(self, sample: Sample, item: Item) -> Grade:
        """See the class."""
        return self.grade_all([sample], [item], Aids())[0]

    def grade_all(self, samples: Sequence[Sample], items: Sequence[Item], aids: Aids) -> list[Grade]:
        """See the class."""
        given = {"pattern": self.pattern, "whole": self.whole}
        return grades_of_each(_CHECK, given, [sample.text.strip() for sample in samples], "the pattern")
