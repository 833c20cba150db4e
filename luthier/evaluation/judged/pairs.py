"""Two systems on the same questions: wins, both orders as one, and what the place of an answer does to its verdict.

A judge may favour what is shown first. So answers are judged in both orders, and a system counts as better on a question
only if it is so in both (Zheng et al. 2023, https://arxiv.org/abs/2306.05685, section 3.4); else the two are as good.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.evaluation.intervals import sign_test
from luthier.evaluation.judged.agreement import agreement, cohen_kappa
from luthier.evaluation.judged.judgments import Judgment


@dataclass(frozen=True)
class Tally:
    """Questions on which a system was better, as good and worse."""

    wins: int = 0
    ties: int = 0
    losses: int = 0

    @property
    def games(self) -> int:
        """All of them."""
        return self.wins + self.ties + self.losses

    @property
    def share(self) -> float:
        """The share of wins, a tie being half of one."""
        return (self.wins + 0.5 * self.ties) / self.games

    def with_outcome(self, outcome: float) -> Tally:
        """The same and one question more: 1 a win, 0 a loss, anything between a tie."""
        return Tally(self.wins + (outcome == 1), self.ties + (0 < outcome < 1), self.losses + (outcome == 0))


@dataclass(frozen=True)
class PositionBias:
    """How often the answer shown first won, the second won, and neither.

    p: how likely so uneven a count is by chance (two-sided, exact; ties left out). num_twice: pairs of answers judged in
    both orders; consistent: the share of them with the same verdict both times; kappa: the same beyond chance. Where no pair
    was judged twice, both are None.
    """

    first: int
    second: int
    ties: int
    p: float
    num_twice: int
    consistent: float | None
    kappa: float | None


def by_system(judgments: Sequence[Judgment]) -> dict[str, Tally]:
    """The tally of each system over all judgments, by name."""
    tallies: dict[str, Tally] = defaultdict(Tally)
    for one in judgments:
        for side in (one, one.turned):
            tallies[side.first] = tallies[side.first].with_outcome(side.outcome)
    return dict(sorted(tallies.items()))


def both_orders(judgments: Sequence[Judgment]) -> list[Judgment]:
    """One judgment for each question, judge and pair of systems: won only if won in both orders and every time, else a tie.

    Pairs that were judged in one order alone keep the verdict they have.
    """
    together: dict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    for one in judgments:
        side = one if one.first <= one.second else one.turned
        together[one.judge, one.question, side.first, side.second].append(side.outcome)
    return [
        Judgment(question, first, second, outcomes[0] if len(set(outcomes)) == 1 else 0.5, judge)
        for (judge, question, first, second), outcomes in together.items()
    ]


def by_pair(judgments: Sequence[Judgment]) -> dict[tuple[str, str], Tally]:
    """The tally of the first of each two systems against the second, both orders being one judgment."""
    tallies: dict[tuple[str, str], Tally] = defaultdict(Tally)
    for one in both_orders(judgments):
        tallies[one.first, one.second] = tallies[one.first, one.second].with_outcome(one.outcome)
    return dict(sorted(tallies.items()))


def position_bias(judgments: Sequence[Judgment]) -> PositionBias:
    """What the place of an answer does to its verdict."""
    first, second = (sum(one.outcome == outcome for one in judgments) for outcome in (1, 0))
    shown: dict[tuple[str, str, str, str], float] = {}
    for one in judgments:
        shown.setdefault((one.judge, one.question, one.first, one.second), one.outcome)
    twice = [
        (outcome, 1 - shown[judge, question, b, a])
        for (judge, question, a, b), outcome in shown.items()
        if a < b and (judge, question, b, a) in shown
    ]
    once, again = [pair[0] for pair in twice], [pair[1] for pair in twice]
    return PositionBias(
        first,
        second,
        len(judgments) - first - second,
        sign_test([one.outcome - 0.5 for one in judgments]),
        len(twice),
        agreement(once, again) if twice else None,
        cohen_kappa(once, again) if twice else None,
    )
