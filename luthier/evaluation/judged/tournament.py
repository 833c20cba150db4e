"""A tournament: all systems on one table, how sure their order is, and what is wrong with the judging."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np

from luthier.errors import UsageError
from luthier.evaluation.intervals import Estimate
from luthier.evaluation.judged.agreement import agreement, cohen_kappa, fleiss_kappa, kendall_tau
from luthier.evaluation.judged.bradley_terry import bradley_terry, groups, unbounded
from luthier.evaluation.judged.elo import K_FACTOR, ORDERS, EloRating, elo
from luthier.evaluation.judged.judgments import Judged, Judgment
from luthier.evaluation.judged.pairs import PositionBias, Tally, both_orders, by_pair, by_system, position_bias
from luthier.evaluation.judged.relative import Relative, relative_scores

_UNSURE = 0.05
_FEWEST_QUESTIONS = 10


@dataclass(frozen=True)
class Standing:
    """One system's results; `relative` is its share of the reference's score, where scores and a reference were given."""

    name: str
    tally: Tally
    elo: EloRating
    strength: Estimate
    relative: Relative | None


@dataclass(frozen=True)
class JudgesAgree:
    """Two judges on the pairs that both judged: the share on which they agree, κ, and τ of their orders of the systems."""

    left: str
    right: str
    num_pairs: int
    share: float
    kappa: float
    tau: float


@dataclass(frozen=True)
class Tournament:
    """Standings from best to worst; how systems did against each other, both orders as one; and the judging itself."""

    standings: tuple[Standing, ...]
    pairs: dict[tuple[str, str], Tally]
    position: PositionBias
    judges: tuple[JudgesAgree, ...]
    fleiss: float | None
    notes: tuple[str, ...]

    def as_table(self) -> list[list[str]]:
        """The standings as rows of text, the first row being the head."""
        has_relative = any(one.relative is not None for one in self.standings)
        head = ["system", "games", "wins", "ties", "losses", "Bradley-Terry", "Elo", "spread of one order"]
        rows = [head + (["of the reference"] if has_relative else [])]
        for one in self.standings:
            tally, sure = one.tally, one.strength
            cells = [one.name, *(f"{n:,}" for n in (tally.games, tally.wins, tally.ties, tally.losses))]
            cells += [f"{sure.value:.0f} [{sure.low:.0f}, {sure.high:.0f}]"]
            cells += [f"{one.elo.mean:.0f}", f"{one.elo.spread:.0f}"]
            if has_relative:
                cells.append("" if one.relative is None else f"{one.relative.mean:.1%}")
            rows.append(cells)
        return rows

    def as_json(self) -> dict[str, object]:
        """Everything, as JSON values."""
        return {
            "standings": [
                {**asdict(one), "relative": None if one.relative is None else {**asdict(one.relative), "mean": one.relative.mean}}
                for one in self.standings
            ],
            "pairs": [{"system": a, "against": b, **asdict(tally)} for (a, b), tally in self.pairs.items()],
            "position": asdict(self.position),
            "judges": [asdict(one) for one in self.judges],
            "fleiss_kappa": self.fleiss,
            "notes": list(self.notes),
        }  # fmt: skip


def hold(
    judged: Judged, *, reference: str | None = None, orders: int = ORDERS, k_factor: float = K_FACTOR, seed: int = 0
) -> Tournament:
    """The tournament of all judgments.

    Args:
        reference: the system whose scores are 100 %; None for no relative scores.
        orders: how many random orders of the games Elo is the mean of; k_factor: how far one game moves it.

    Raises: UsageError for a reference that was not judged or has no scores.
    """
    _check_reference(judged, reference)
    judgments = judged.judgments
    tallies, ratings = by_system(judgments), elo(judgments, orders=orders, k_factor=k_factor, seed=seed)
    strength = bradley_terry(judgments, seed=seed)
    relative = {} if reference is None else relative_scores(judged.scores, reference)
    standings = [
        Standing(name, tally, ratings[name], strength[name], relative.get(name)) for name, tally in tallies.items()
    ]
    of_judge = _by_judge(judgments)
    position = position_bias(judgments)
    return Tournament(
        tuple(sorted(standings, key=lambda one: -one.strength.value)),
        by_pair(judgments),
        position,
        tuple(_agree(of_judge, left, right) for left, right in combinations(sorted(of_judge), 2)),
        _fleiss(of_judge),
        tuple(_notes(judged, position)),
    )


def _check_reference(judged: Judged, reference: str | None) -> None:
    if reference is None:
        return
    if reference not in judged.systems:
        raise UsageError(f"--against: no system is called {reference!r}.", f"There are {', '.join(judged.systems)}.")
    if not judged.scores:
        raise UsageError(
            "--against needs scores, and the file holds verdicts alone.", "Leave it out, or give score_1 and score_2."
        )


# ── judges ──────────────────────────────────────────────────────────────────────────────────────────────────────────

_Pair = tuple[str, str, str]


def _by_judge(judgments: Sequence[Judgment]) -> dict[str, dict[_Pair, float]]:
    """What each judge said of a question and two systems, both orders as one."""
    said: dict[str, dict[_Pair, float]] = defaultdict(dict)
    for one in both_orders(judgments):
        said[one.judge][one.question, one.first, one.second] = one.outcome
    return dict(said)


def _agree(of_judge: dict[str, dict[_Pair, float]], left: str, right: str) -> JudgesAgree:
    ours, theirs = of_judge[left], of_judge[right]
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        return JudgesAgree(left, right, 0, 0.0, 0.0, 0.0)
    sides = [[said[pair] for pair in shared] for said in (ours, theirs)]
    orders = [_shares([Judgment(*pair, said[pair]) for pair in shared]) for said in (ours, theirs)]
    return JudgesAgree(left, right, len(shared), agreement(*sides), cohen_kappa(*sides), kendall_tau(*orders))


def _shares(judgments: Sequence[Judgment]) -> list[float]:
    return [tally.share for tally in by_system(judgments).values()]


def _fleiss(of_judge: dict[str, dict[_Pair, float]]) -> float | None:
    """κ of all judges on what each of them judged; None for fewer than two judges or nothing in common."""
    shared = set.intersection(*(set(said) for said in of_judge.values()))
    if len(of_judge) < 2 or not shared:
        return None
    said_NJ = np.array([[said[pair] for said in of_judge.values()] for pair in sorted(shared)])
    return fleiss_kappa(np.stack([(said_NJ == outcome).sum(1) for outcome in (1.0, 0.5, 0.0)], 1))


# ── what to say ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _notes(judged: Judged, position: PositionBias) -> list[str]:
    notes = []
    if judged.num_swapped:
        notes.append(f"In {judged.num_swapped:,} rows the two scores were swapped, as asked.")
    if judged.num_without:
        notes.append(f"{judged.num_without:,} rows hold no verdict that is known and are left out.")
    if judged.num_alike:
        notes.append(f"{judged.num_alike:,} judgments are of two answers of one system and are left out.")
    parts = groups(judged.judgments)
    if len(parts) > 1:
        listed = "; ".join(", ".join(part) for part in parts)
        notes.append(f"Systems that never met, by groups: {listed}. Ratings compare within a group only.")
    undefeated, winless = unbounded(judged.judgments)
    for names, what in ((undefeated, "won"), (winless, "lost")):
        if names:
            notes.append(f"{', '.join(names)} {what} every game: how far from the others is the prior's word alone.")
    if position.p < _UNSURE:
        side = "first" if position.first > position.second else "second"
        notes.append(
            f"The answer shown {side} wins more often ({position.first:,} against {position.second:,}, p {position.p:.2g})."
            + ("" if position.num_twice else " Judge each pair in both orders.")
        )
    num_questions = len({one.question for one in judged.judgments})
    if num_questions < _FEWEST_QUESTIONS:
        notes.append(f"{num_questions} questions are too few for intervals to mean much.")
    return notes
