"""A number by which models are measured on the same rows, and what its intervals and its sign test say of two of them.

A difference counts where two witnesses agree: its paired bootstrap interval leaves out 0, and the sign test over the rows says
that the rises and falls are uneven in the same direction. The first alone believes a few wild rows; the second alone says
nothing of how much. Where rows have no values of their own (BLEU, an F1 of all rows) the bootstrap gives the second witness as well.
A difference whose whole interval lies within a margin is none: that is shown, not merely not disproved
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

_NO_SPREAD = 1e-9
"""A margin for scores that are all the same."""

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
    bootstrap_p: how likely so large a difference is by chance, where rows have no values of their own to be counted.
    """

    difference: Estimate | None
    sign_test_p: float | None
    rises: int = 0
    falls: int = 0
    bootstrap_p: float | None = None

    @property
    def is_untouched(self) -> bool:
        """Whether nothing that was measured differs at all."""
        found = self.difference
        return found is not None and self.rises == self.falls == 0 and found.low == found.value == found.high == 0

    def is_likely(self, alpha: float, *, rose: bool) -> bool:
        """Whether by a second witness chance may have done it: the counts of rows, or draws of them all."""
        if self.sign_test_p is not None:
            return self.sign_test_p > alpha or (self.rises > self.falls) != rose
        return self.bootstrap_p is not None and self.bootstrap_p > alpha


@dataclass(frozen=True)
class Measure:
    """One number by which candidates are measured: its estimate for each, and each later one against the first.

    margin: differences below it do not matter. span: how far apart two values of a row can be; of scores of an open scale, as far
    as they were found to be. unscored: the most by which rows without a value could move a difference.
    """

    name: str
    higher_is_better: bool
    num_rows: int
    estimates: tuple[Estimate, ...]
    comparisons: tuple[Comparison, ...]
    margin: float = SCORE_MARGIN
    witness: Witness = "answers"
    span: float = 1.0
    unscored: float = 0.0

    def verdict(self, index: int, alpha: float = ALPHA) -> Verdict | None:
        """Whether candidate `index` (1 or more) is better than the first one, or no different. None: not asked.

        alpha: how unlikely by chance the counts of better and worse rows, or so large a difference, must be.
        """
        found = self.comparisons[index - 1]
        difference = found.difference
        if difference is None:
            return None
        if self.num_rows < FEWEST_ROWS or math.isnan(difference.low) or math.isnan(difference.high):
            return "unclear"  # infinite losses on both sides have no difference
        low, high = difference.low - self.unscored, difference.high + self.unscored
        if -self.margin < low and high < self.margin:
            return "same" if self._unseen < self.margin else "unclear"
        rose = low > 0
        if (not rose and high >= 0) or found.is_likely(alpha, rose=rose):
            return "unclear"
        return "better" if rose == self.higher_is_better else "worse"

    @property
    def _unseen(self) -> float:
        """By how much rows of a kind that was not met could differ in the mean, by the rule of three.

        A kind of row that is 3 in N of all rows is missed by N draws in one case of twenty, and the bootstrap knows none but the
        rows that it has: where no row of few differs its interval is a point (Hanley and Lippman-Hand 1983,
        https://doi.org/10.1001/jama.1983.03330370053031). A loss has no such bound, and is never quite the same for another model.
        """
        return 0.0 if self.witness == "likelihood" else 3 * self.span / self.num_rows

    def is_lost(self, index: int) -> bool:
        """Whether candidate `index` is surely worse than the first by more than the margin."""
        return self.verdict(index) == "worse" and self._worst(index)[0] > self.margin

    def is_kept(self, index: int) -> bool:
        """Whether candidate `index` is surely not worse than the first by more than the margin."""
        is_shown = self.num_rows >= FEWEST_ROWS and self._unseen < self.margin
        return is_shown and self._worst(index)[1] < self.margin

    def _worst(self, index: int) -> tuple[float, float]:
        """The interval of how much worse candidate `index` is than the first."""
        difference = self.comparisons[index - 1].difference
        assert difference is not None, "measures of one's own scale have a difference"
        return (-difference.high, -difference.low) if self.higher_is_better else (difference.low, difference.high)


def scale_of(values_CN: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The margin and the span of scores whose scale their values alone tell: of each candidate, one a row."""
    if all(0 <= value <= 1 for values in values_CN for value in values):
        return SCORE_MARGIN, 1.0
    return open_scale_of(values_CN)


def open_scale_of(values_CN: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The margin and the span of scores that have no ends, which may lie between 0 and 1 by chance."""
    span = max(map(max, values_CN)) - min(map(min, values_CN))
    return margin_by_spread(values_CN[0]) or _NO_SPREAD, span


def margin_by_spread(values_N: Sequence[float]) -> float:
    """A margin for scores of any scale, from the first candidate's values."""
    return _SMALL_EFFECT * statistics.pstdev(values_N)
