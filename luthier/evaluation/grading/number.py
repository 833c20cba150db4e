"""Whether the answer comes to a number.

Which number of a text is its answer: what stands in the last `\\boxed{}`; else after the last `####` or the last "answer is"
or "answer:"; else the last number of all. Thousands may be parted by commas; `1/2`, `3.5e-2`, `$12` and `40 %` are read
(a percent sign does not divide: 40 % is 40).
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Literal

from pydantic import Field

from luthier.evaluation.grading.contract import Grade, Grader, Item, Sample
from luthier.evaluation.grading.templates import Missing, Template, filled

_NUMBER = r"[-−+]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
_VALUE = re.compile(rf"(?<![\w.])({_NUMBER})(?:\s*/\s*({_NUMBER}))?(?!\w)")
_MARKED = (
    re.compile(r"\\boxed\{([^{}]*)\}"),
    re.compile(r"####([^\n]*)"),
    re.compile(r"(?i)\banswer\s*(?:is|:|=)([^\n]*)"),
)


def number_in(text: str) -> Fraction | None:
    """The number that the text comes to; None if it holds none."""
    for mark in _MARKED:
        found = [value for part in mark.findall(text) if (value := numbers_in(part))]
        if found:
            return found[-1][0]
    numbers = numbers_in(text)
    return numbers[-1] if numbers else None


def numbers_in(text: str) -> list[Fraction]:
    """All numbers in a text, in order."""
    return [value for match in _VALUE.finditer(text) if (value := _value(match)) is not None]


def _value(match: re.Match[str]) -> Fraction | None:
    """None for what no float can hold, and for a division by 0."""
    above, below = (_fraction(part) if part else Fraction(1) for part in match.groups())
    return above / below if above is not None and below else None


def _fraction(text: str) -> Fraction | None:
    plain = text.replace(",", "").replace("−", "-")
    return Fraction(plain) if math.isfinite(float(plain)) else None


class Number(Grader):
    """1 if the answer comes to the reference's number within the tolerance, else 0."""

    kind: Literal["number"] = Field("number", alias="type")
    input: Template = Field("{{ sample.output_text }}", description="The text whose number is taken.")
    reference: Template = Field(description="The text whose number is right, such as {{ item.answer }}.")
    tolerance: float = Field(0.0, ge=0, description="How far off it may be, as a share of the right number.")

    def grade(self, sample: Sample, item: Item) -> Grade:
        """See the class."""
        try:
            given, wanted = (number_in(filled(text, sample, item)) for text in (self.input, self.reference))
        except Missing as missing:
            return Grade(None, str(missing))
        if wanted is None:
            return Grade(None, "the reference holds no number")
        if given is None:
            return Grade.of(0)
        return Grade.of(abs(given - wanted) <= Fraction(self.tolerance) * abs(wanted))
