"""What choosing the best of n answers would earn, and how far that goes from the model: the baseline of learning from rewards.

Of N answers to a prompt, sorted by reward r_(1) ≤ … ≤ r_(N), the mean of what the best of n drawn answers is worth is, without bias,

    Σ_{i = n}^{N} C(i − 1, n − 1) / C(N, n) g_(i)

with g the reward itself or another measure of the same answers (Nakano et al. 2021, https://arxiv.org/abs/2112.09332, appendix I;
Gao et al. 2022, https://arxiv.org/abs/2210.10760, section 3). Where rewards are equal, each of the answers is as likely chosen. The
divergence of the chosen from the drawn answers is at most log n − (n − 1) / n nats (Beirami et al. 2024,
https://arxiv.org/abs/2401.01879).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from luthier.evaluation.intervals import Estimate, bootstrap_mean
from luthier.evaluation.verdict import Details, Table, in_words
from luthier.store.pictures import rule, write_png

_COLORS = ("#9ca3af", "#2563eb", "#ea580c", "#0d9488")


def kl_bound(n: int) -> float:
    """Most nats of KL(best of n ‖ one answer)."""
    return math.log(n) - (n - 1) / n


def best_of(reward_N: Sequence[float], n: int, measure_N: Sequence[float] | None = None) -> float:
    """The mean reward (or other measure) of the best by reward of n of these answers, over all choices of n. n is at most N."""
    reward = np.asarray(reward_N, dtype=np.float64)
    assert 1 <= n <= len(reward)
    _, place_N, count = np.unique(reward, return_inverse=True, return_counts=True)
    other = reward if measure_N is None else np.asarray(measure_N, dtype=np.float64)
    mean_of_place = np.bincount(place_N, weights=other) / count
    ranks = np.arange(n, len(reward) + 1)
    chance = np.array([math.exp(_log_choose(rank - 1, n - 1) - _log_choose(len(reward), n)) for rank in ranks.tolist()])
    chosen = mean_of_place[np.sort(place_N)[ranks - 1]]
    return float(chance @ chosen)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def sizes_to(most: int) -> list[int]:
    """1, 2, 4 and so on, and `most` itself."""
    powers = [1 << power for power in range(most.bit_length()) if 1 << power < most]
    return [*powers, most]


@dataclass(frozen=True)
class Point:
    """The best of n: the mean over prompts of each measure, the reward first, and most nats from the model."""

    n: int
    kl_bound: float
    measures: Mapping[str, Estimate]

    def as_json(self) -> dict[str, object]:
        """As JSON values."""
        return {"n": self.n, "kl_bound": self.kl_bound, **{name: vars(each) for name, each in self.measures.items()}}


def curve(answers: Sequence[Mapping[str, Sequence[float]]], most: int) -> list[Point]:
    """The points for n = 1, 2, 4, … `most`. answers: of each prompt, what its answers are worth by each measure; "reward" chooses."""
    names = list(answers[0])
    points = []
    for n in sizes_to(most):
        of_prompts = {name: [best_of(each["reward"], n, each[name]) for each in answers] for name in names}
        points.append(Point(n, kl_bound(n), {name: bootstrap_mean(values) for name, values in of_prompts.items()}))
    return points


@dataclass(frozen=True)
class BestOfN(Details):
    """The curves of all candidates over the same prompts."""

    curves: Mapping[str, Sequence[Point]]
    num_prompts: int

    def tables(self) -> tuple[Table, ...]:
        """A table for each candidate."""
        return tuple(
            Table(
                f"{name}: best of n answers over {self.num_prompts} prompts, chosen by reward",
                [
                    ["n", "KL at most (nats)", *points[0].measures],
                    *(
                        [str(point.n), f"{point.kl_bound:.3f}", *map(in_words, point.measures.values())]
                        for point in points
                    ),
                ],
            )
            for name, points in self.curves.items()
        )

    def as_json(self) -> dict[str, object]:
        """As JSON values."""
        curves = {name: [point.as_json() for point in points] for name, points in self.curves.items()}
        return {"best_of_n": curves, "prompts": self.num_prompts}

    def write_picture(self, path: Path) -> None:
        """Each measure against √KL, a line with its interval for each candidate."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        names = list(next(iter(self.curves.values()))[0].measures)
        figure = Figure(figsize=(1 + 4.5 * len(names), 3.8), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        for axes, measure in zip(np.atleast_1d(figure.subplots(1, len(names))).tolist(), names, strict=True):
            for index, (name, points) in enumerate(self.curves.items()):
                at = [point.kl_bound**0.5 for point in points]
                found = [point.measures[measure] for point in points]
                color = _COLORS[index % len(_COLORS)]
                axes.plot(at, [each.value for each in found], "o-", color=color, label=name, markersize=3)
                axes.fill_between(
                    at, [each.low for each in found], [each.high for each in found], color=color, alpha=0.2
                )
            points = next(iter(self.curves.values()))
            axes.set_xticks([point.kl_bound**0.5 for point in points], [str(point.n) for point in points])
            axes.set(xlabel="n, at the root of the most nats from the model", ylabel=f"{measure} of the best of n")
            axes.legend(frameon=False)
            rule(axes)
        write_png(figure, path)
