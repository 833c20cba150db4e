"""A penalty for answers that are too long: 0 up to a length, then falling to −1.

The overlong penalty of DAPO (Yu et al. 2025, https://arxiv.org/abs/2503.14476, eq. 13): with n words,

    0 for n ≤ most − margin,    (most − margin − n) / margin up to most,    −1 beyond
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from luthier.evaluation.grading.contract import Grade, Grader, Item, Sample
from luthier.types import fault_at


class Length(Grader):
    """From 0 (short enough) to −1 (too long), in words parted by white space."""

    kind: Literal["length"] = Field("length", alias="type")
    most: int = Field(ge=1, description="Words from which on the penalty is whole.")
    margin: int = Field(0, ge=0, description="Words before that over which it grows; 0: all at once.")

    @model_validator(mode="after")
    def _margin_within(self) -> Self:
        if self.margin > self.most:
            raise fault_at("margin", f"must not exceed most ({self.most})")
        return self

    def grade(self, sample: Sample, item: Item) -> Grade:
        """See the class."""
        over = len(sample.text.split()) - (self.most - self.margin)
        if over <= 0:
            return Grade.of(0.0)
        return Grade.of(-min(1.0, over / self.margin) if self.margin else -1.0)
