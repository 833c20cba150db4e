"""Signs that a policy earns its reward in a way that nobody wished: told in words while the run goes on.

The reward stands for what is wished, and a policy finds what the reward does not mean (Gao et al. 2022,
https://arxiv.org/abs/2210.10760). What tells: an independent measure that falls while the reward rises; answers that grow with the
reward; reward models that agree no more; answers that repeat themselves; a policy that has become sure of everything; a divergence from the reference beyond what
rewards are worth. Each sign compares the last rollouts with the first ones, or with the best yet, against the noise of their means.
The bounds are working values of ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from luthier.rlhf.samples import Sample

Kind = Literal["watched measure", "disagreement", "length", "repetition", "certainty", "divergence"]

WINDOW = 4
"""Rollouts that are taken together."""
_FALLS = 0.05  # of a watched measure's range, below its peak
_DISAGREES = 2.0
_GROWS = 1.5
_LEAST_CORRELATION = 0.3
_REPEATS = 0.6
_CERTAIN = 0.25
_MOST_NATS = 20.0


@dataclass(frozen=True)
class Sign:
    """One thing that is wrong, in words."""

    kind: Kind
    words: str


@dataclass(frozen=True)
class Course:
    """What one rollout came to: means over its answers.

    rewards, watched, lengths: of each answer. spreads: how far the members of ensembles differ. distinct: the share of pairs of neighbouring tokens that are not a repetition.
    """

    reward: float
    reward_error: float
    watched: dict[str, tuple[float, float]]
    length: float
    correlation: float
    distinct: float
    entropy: float
    divergence: float | None
    spreads: dict[str, float] = field(default_factory=dict)


def course_of(samples: Sequence[Sample], watched: Sequence[str]) -> Course | None:
    """The numbers of a rollout; None where no answer has a reward. Nobody was asked of answers that were replaced."""
    known = [sample for sample in samples if sample.reward is not None]
    heard = [sample for sample in known if not sample.replaced]
    if not known:
        return None
    reward = np.array([sample.reward for sample in known], dtype=np.float64)
    length = np.array([sample.num_tokens for sample in known], dtype=np.float64)
    varied = reward.std() > 0 and length.std() > 0
    asked = bool(heard) and all(sample.reference_T is not None for sample in heard)
    return Course(
        reward=float(reward.mean()),
        reward_error=_error(reward),
        watched={name: _mean([sample.parts.get(name) for sample in known]) for name in watched},
        length=float(length.mean()),
        correlation=float(np.corrcoef(reward, length)[0, 1]) if varied else 0.0,
        distinct=float(np.mean([_distinct(sample.tokens) for sample in known])),
        entropy=float(np.mean(np.concatenate([-sample.engine_T for sample in known]))),
        divergence=float(np.mean([sample.ratio_T.sum() for sample in heard])) if asked else None,
        spreads={name: _mean([sample.spreads.get(name) for sample in known])[0] for name in known[0].spreads},
    )


def signs(history: Sequence[Course]) -> list[Sign]:
    """What the rollouts so far tell, from the first to the last; nothing before there are two windows of them."""
    if len(history) < 2 * WINDOW:
        return []
    first, last = history[:WINDOW], history[-WINDOW:]
    rises = _mean_of(last, "reward") - _mean_of(first, "reward") > 2 * _error_of(first, last)
    found = [_fallen(history, name) for name in history[0].watched] if rises else []
    found += [_parted(first, last, name) for name in history[0].spreads]
    found += [_grown(first, last), _repeating(first, last), _certain(first, last), _far(last)]
    return [sign for sign in found if sign is not None]


def _fallen(history: Sequence[Course], name: str) -> Sign | None:
    """A watched measure below its best while the reward is higher than it was then."""
    windows = [history[start : start + WINDOW] for start in range(len(history) - WINDOW + 1)]
    means = [float(np.mean([each.watched[name][0] for each in window])) for window in windows]
    errors = [float(np.mean([each.watched[name][1] for each in window])) / WINDOW**0.5 for window in windows]
    best = int(np.argmax(means))
    fall, noise = means[best] - means[-1], float(np.hypot(errors[best], errors[-1]))
    spread = max(abs(means[best]), max(means) - min(means), 1e-9)
    earned = _mean_of(windows[-1], "reward") - _mean_of(windows[best], "reward")
    if fall <= 3 * noise or fall <= _FALLS * spread or earned <= 0:
        return None
    return Sign(
        "watched measure",
        f"The reward rose from {_mean_of(windows[best], 'reward'):.3g} to {_mean_of(windows[-1], 'reward'):.3g} while {name}, which is "
        f"only watched, fell from {means[best]:.3g} to {means[-1]:.3g}: the policy is learning what the reward does not mean. "
        "Stop at the best step of the watched measure, or mend the reward.",
    )


def _parted(first: Sequence[Course], last: Sequence[Course], name: str) -> Sign | None:
    """Members of an ensemble that differ far more than they did of the first answers."""
    before, now = (float(np.mean([each.spreads.get(name, 0.0) for each in window])) for window in (first, last))
    if now <= max(_DISAGREES * before, 1e-6):
        return None
    return Sign(
        "disagreement",
        f"The models of {name} differ by {now:.3g} in what answers are worth, and by {before:.3g} at first: these answers are unlike those that "
        "they learned from. Raise its caution or objective.kl, or train them on such answers too.",
    )


def _grown(first: Sequence[Course], last: Sequence[Course]) -> Sign | None:
    before, now = _mean_of(first, "length"), _mean_of(last, "length")
    correlation = _mean_of(last, "correlation")
    if now <= _GROWS * before or correlation <= _LEAST_CORRELATION:
        return None
    return Sign(
        "length",
        f"Answers grew from {before:.0f} to {now:.0f} tokens, and longer ones earn more (correlation {correlation:.2f}): length itself may be "
        "what is rewarded. Punish it, or compare answers of like length.",
    )


def _repeating(first: Sequence[Course], last: Sequence[Course]) -> Sign | None:
    before, now = _mean_of(first, "distinct"), _mean_of(last, "distinct")
    if now >= _REPEATS * before:
        return None
    return Sign(
        "repetition",
        f"Of all neighbouring tokens {now:.0%} are no repetition, {before:.0%} at first: answers repeat themselves. "
        "Punish repetition, or raise objective.kl.",
    )


def _certain(first: Sequence[Course], last: Sequence[Course]) -> Sign | None:
    before, now = _mean_of(first, "entropy"), _mean_of(last, "entropy")
    earned = _mean_of(last, "reward") - _mean_of(first, "reward")
    if now >= _CERTAIN * before or earned > 2 * _error_of(first, last):  # sure, and rightly so
        return None
    return Sign(
        "certainty",
        f"The entropy of the next token fell from {before:.3g} to {now:.3g} nats and the reward did not rise: the policy tries nothing new. "
        "Lower training.peak_lr, raise objective.kl or objective.clip_high, or set objective.entropy_bonus.",
    )


def _far(last: Sequence[Course]) -> Sign | None:
    known = [each.divergence for each in last if each.divergence is not None]
    if not known or float(np.mean(known)) <= _MOST_NATS:
        return None
    return Sign(
        "divergence",
        f"Answers are {float(np.mean(known)):.0f} nats from the reference, where rewards seldom still mean what they did. "
        "Raise objective.kl, or stop earlier.",
    )


def _mean(numbers: Sequence[float | None]) -> tuple[float, float]:
    known = np.array([number for number in numbers if number is not None], dtype=np.float64)
    return (float(known.mean()), _error(known)) if len(known) else (0.0, 0.0)


def _error(numbers: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    """The standard error of a mean."""
    return float(numbers.std(ddof=1) / len(numbers) ** 0.5) if len(numbers) > 1 else 0.0


def _mean_of(window: Sequence[Course], name: str) -> float:
    return float(np.mean([vars(each)[name] for each in window]))


def _error_of(first: Sequence[Course], last: Sequence[Course]) -> float:
    """The standard error of the difference of two windows' mean rewards."""
    errors = [_mean_of(window, "reward_error") / len(window) ** 0.5 for window in (first, last)]
    return float(np.hypot(*errors))


def _distinct(tokens: Sequence[int]) -> float:
    pairs = list(itertools.pairwise(tokens))
    return len(set(pairs)) / len(pairs) if pairs else 1.0
