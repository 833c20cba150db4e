"""Scores against one reference system: how much of its score another one gets.

Over the questions of one order, Σ score of the system / Σ score of the reference; then the mean of the two orders (the
"% of ChatGPT" of QLoRA, Dettmers et al. 2023, https://arxiv.org/abs/2305.14314, section 5.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from luthier.evaluation.judged.judgments import Scores


@dataclass(frozen=True)
class Relative:
    """A system's share of the reference's score: shown first, shown second (None: never was), and the mean of both."""

    shown_first: float | None
    shown_second: float | None

    @property
    def mean(self) -> float:
        """The mean of the orders there are."""
        orders = [share for share in (self.shown_first, self.shown_second) if share is not None]
        return sum(orders) / len(orders)


def relative_scores(scores: Sequence[Scores], reference: str) -> dict[str, Relative]:
    """The share of each system that was scored beside `reference`, by name; needs the reference's scores not to sum to 0."""
    sums: dict[tuple[str, bool], list[float]] = {}
    for one in scores:
        if one.second == reference:
            own = sums.setdefault((one.first, True), [0.0, 0.0])
            own[0] += one.score_first
            own[1] += one.score_second
        elif one.first == reference:
            own = sums.setdefault((one.second, False), [0.0, 0.0])
            own[0] += one.score_second
            own[1] += one.score_first
    shares = {key: own / others for key, (own, others) in sums.items() if others}
    names = sorted({name for name, _ in shares})
    return {name: Relative(shares.get((name, True)), shares.get((name, False))) for name in names}
