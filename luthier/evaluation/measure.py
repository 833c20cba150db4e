"""A number by which models are measured on the same rows, and what its intervals and its sign test say of two of them.

A difference counts where two witnesses agree: its paired bootstrap interval leaves out 0, and the sign test over the rows says
that the rises and falls are uneven in the same direction. The first alone believes a few wild rows; the second alone says
nothing of how much. A difference whose whole interval lies within a margin is none: that is shown, not merely not disproved
(Schuirmann 1987, https://doi.org/10.1007/BF01068419, with the 95 % interval in place of the 90 % one).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from luthier.evaluation.intervals import Estimate

FEWEST_ROWS = 10
"""With fewer rows no verdict is given: a bootstrap over a handful of rows is surer of itself than it should be."""

LOSS_MARGIN = 0.01
"""Nats a token: a change of 1 % in perplexity."""

SCORE_MARGIN = 0.02
"""Of scores between 0 and 1."""

_SMALL_EFFECT = 0.1
"""Of scores of any other scale, in standard deviations over the rows; Cohen calls 0.2 small."""

ALPHA = 0.05

Verdict = Literal["better", "same", "worse", "unclear"]
Witness = Literal["likelihood", "answers", "part"]
"""What a measure tells of: how likely the references are, what is answered, or a part of the rows that a whole is given for."""


@dataclass(frozen=True)
class Comparison:
    """One candidate against the first, on the same rows.

    difference: this one's mean minus the first one's; None where the measure is only another scale of one before it.
    sign_test_p: how likely so uneven a count of better and worse rows is by chance; None where no row has a value of its own.
    rises, falls: on how many rows this one's value is the higher, and the lower.
    """

    difference: Estimate | None
    sign_test_p: float | None
    rises: int = 0
    falls: int = 0


@dataclass(frozen=True)
class Measure:
    """One number by which candidates are measured: its estimate for each, and each later one against the first.

    margin: differences below it do not matter.
    """

    name: str
    higher_is_better: bool
    num_rows: int
    estimates: tuple[Estimate, ...]
    comparisons: tuple[Comparison, ...]
    margin: float = SCORE_MARGIN
    witness: Witness = "answers"

    def verdict(self, index: int, alpha: float = ALPHA) -> Verdict | None:
        """Whether candidate `index` (1 or more) is better than the first one, or no different. None: not asked.

        alpha: how unlikely by chance the counts of better and worse rows must be.
        """
        found = self.comparisons[index - 1]
        difference = found.difference
        if difference is None:
            return None
        if self.num_rows < FEWEST_ROWS or math.isnan(difference.low) or math.isnan(difference.high):
            return "unclear"  # infinite losses on both sides have no difference
        if -self.margin < difference.low and difference.high < self.margin:
            return "same"
        rose = difference.low > 0
        if not rose and difference.high >= 0:
            return "unclear"
        if found.sign_test_p is not None and (found.sign_test_p > alpha or (found.rises > found.falls) != rose):
            return "unclear"
        return "better" if rose == self.higher_is_better else "worse"

    def is_lost(self, index: int) -> bool:
        """Whether candidate `index` is surely worse than the first by more than the margin."""
        return self.verdict(index) == "worse" and self._worst(index)[0] > self.margin

    def is_kept(self, index: int) -> bool:
        """Whether candidate `index` is surely not worse than the first by more than the margin."""
        return self.num_rows >= FEWEST_ROWS and self._worst(index)[1] < self.margin

    def _worst(self, index: int) -> tuple[float, float]:
        """The interval of how much worse candidate `index` is than the first."""
        difference = self.comparisons[index - 1].difference
        assert difference is not None, "measures of one's own scale have a difference"
        return (-difference.high, -difference.low) if self.higher_is_better else (difference.low, difference.high)


def margin_by_spread(values_N: Sequence[float]) -> float:
    """A margin for scores of any scale, from the first candidate's values."""
    return _SMALL_EFFECT * statistics.pstdev(values_N)
