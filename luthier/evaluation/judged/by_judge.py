"""What a model's judgments come to: win rates over both orders, what the place of an answer does, and what could not be read.

A pair counts once: won where it was won in every order that it was shown in, else a tie (`pairs.both_orders`); where an order's verdict
could not be read it does not count. Several pairs of a prompt are not independent: a prompt's share of wins is the mean of its
pairs', and prompts are what is drawn anew for the interval.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from luthier.evaluation.intervals import Estimate, bootstrap_mean, sign_test, wilson
from luthier.evaluation.judged.blind import Pair, prompt_key
from luthier.evaluation.judged.judgments import judgment_of
from luthier.evaluation.judged.pairs import PositionBias, Tally, position_bias
from luthier.evaluation.judged.records import Record
from luthier.evaluation.measure import ALPHA, FEWEST_ROWS, Verdict


@dataclass(frozen=True)
class WinRate:
    """How a system did against another: its pairs, its share of wins over prompts, and how unlikely so uneven a count is by chance.

    p: of the exact two-sided sign test over prompts, prompts without a winner left out. num_tests: how many pairs of systems the
    judge compared in all: each must be as unlikely by chance as their number asks (Bonferroni).
    """

    system: str
    against: str
    tally: Tally
    num_prompts: int
    rate: Estimate
    p: float
    num_tests: int = 1

    @property
    def verdict(self) -> Verdict:
        """Whether the system is better than the other: interval and test must agree."""
        if self.num_prompts < FEWEST_ROWS or self.p > ALPHA / self.num_tests:
            return "unclear"
        return "better" if self.rate.low > 0.5 else "worse" if self.rate.high < 0.5 else "unclear"


@dataclass(frozen=True)
class JudgeSummary:
    """One judge's verdicts in numbers. settings: how it was asked. num_unreadable: verdicts without one, refusals among them.

    num_half: pairs that do not count, because of an order there is no verdict. same_system: pairs of one system's answers.
    position, first_share: of a judge that sees answers in an order; first_share is the share of choices that fell on the first.
    """

    judge: str
    settings: Mapping[str, Any]
    num_verdicts: int
    num_unreadable: int
    num_refused: int
    num_pairs: int
    num_half: int
    same_system: int
    rates: tuple[WinRate, ...]
    position: PositionBias | None
    first_share: Estimate | None

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        rates = [{**asdict(each), "verdict": each.verdict} for each in self.rates]
        return {**asdict(self), "settings": dict(self.settings), "rates": rates}

    def as_lines(self) -> list[str]:
        """The same in words."""
        told = [f"{self.num_pairs:,} pairs judged by {self.judge} in {self.num_verdicts:,} verdicts."]
        if self.num_unreadable:
            refused = f", {self.num_refused:,} of them refused" if self.num_refused else ""
            told.append(
                f"{self.num_unreadable:,} verdicts could not be read{refused}: {self.num_half:,} pairs count for nothing."
            )
        told += [_rate_in_words(each) for each in self.rates]
        if self.same_system:
            told.append(f"{self.same_system:,} pairs are of one system's answers: they say nothing of systems.")
        return [*told, *self._position_lines()]

    def _position_lines(self) -> list[str]:
        position = self.position
        if position is None:
            return ["A reward model scores each answer by itself: no answer is shown first."]
        told = []
        if self.first_share is not None:
            chance = "more than chance explains" if position.p <= ALPHA else "as chance may have it"
            told.append(
                f"The answer shown first was chosen: {_percent(self.first_share)} "
                f"({position.first:,} of {position.first + position.second:,}, p {position.p:.2g}: {chance})."
            )
        if position.consistent is not None:
            told.append(
                f"{position.num_twice:,} pairs have a verdict in both orders, {position.consistent:.1%} of them the same "
                f"(kappa {position.kappa:.2f})."
            )
        return told


def _rate_in_words(rate: WinRate) -> str:
    said = {
        "better": f"{rate.system} is better",
        "worse": f"{rate.system} is worse",
        "unclear": f"fewer than {FEWEST_ROWS} prompts are too few for a verdict"
        if rate.num_prompts < FEWEST_ROWS
        else "no clear difference",
        "same": "no difference",
    }[rate.verdict]
    tally = rate.tally
    return (
        f"{rate.system} against {rate.against}: {_percent(rate.rate)} of {rate.num_prompts:,} prompts "
        f"({tally.wins:,} won, {tally.ties:,} tied, {tally.losses:,} lost; sign test p {rate.p:.2g}): {said}."
    )


def _percent(estimate: Estimate) -> str:
    return f"{estimate.value:.1%} [{estimate.low:.1%}, {estimate.high:.1%}]"


def judge_summaries(records: Sequence[Record]) -> list[JudgeSummary]:
    """The verdicts of each model that judged, in the order in which they began."""
    judges = dict.fromkeys(each.annotator for each in records if each.judge is not None)
    return [
        _summary([each for each in records if each.annotator == name and each.judge is not None]) for name in judges
    ]


def _summary(records: Sequence[Record]) -> JudgeSummary:
    settings = records[0].judge
    assert settings is not None
    whole, num_half = whole_pairs(records)
    judgments = [found for each in records if (found := judgment_of(each)) is not None]
    position = position_bias(judgments) if settings["orders"] == 2 else None
    num_decided = 0 if position is None else position.first + position.second
    return JudgeSummary(
        judge=records[0].annotator,
        settings=settings,
        num_verdicts=len(records),
        num_unreadable=sum(each.outcome is None for each in records),
        num_refused=sum(each.refused for each in records),
        num_pairs=len(whole),
        num_half=num_half,
        same_system=sum(len(_systems(pair)) == 1 for pair, _ in whole),
        rates=tuple(_rates(whole)),
        position=position,
        first_share=wilson(position.first, num_decided) if position is not None and num_decided else None,
    )


def whole_pairs(records: Sequence[Record]) -> tuple[list[tuple[Pair, float]], int]:
    """One judge's pairs that have a verdict in every order, with that of the pair's first answer: 1 won, 0 lost, 0.5 neither.

    And how many pairs lack a verdict that can be read.
    """
    by_pair: dict[str, list[Record]] = defaultdict(list)
    for each in records:
        by_pair[each.pair.id].append(each)
    whole, num_half = [], 0
    for own in by_pair.values():
        pair, settings = own[0].pair, own[0].judge
        assert settings is not None
        outcomes = {
            each.outcome if each.shown == pair.responses else 1 - each.outcome
            for each in own
            if each.outcome is not None
        }
        num_read = sum(each.outcome is not None for each in own)
        if num_read == settings["orders"]:
            whole.append((pair, outcomes.pop() if len(outcomes) == 1 else 0.5))
        else:
            num_half += num_read < len(own)
    return whole, num_half


def settled(records: Sequence[Record]) -> list[Record]:
    """What each judge says of a pair as one judgment: a choice where it is the same in every order, else a tie.

    What people said stays as it is; pairs without a verdict in every order are skipped ones.
    """
    found = [each for each in records if each.judge is None]
    for name in dict.fromkeys(each.annotator for each in records if each.judge is not None):
        own = [each for each in records if each.annotator == name and each.judge is not None]
        outcomes = {pair.id: outcome for pair, outcome in whole_pairs(own)[0]}
        for each in {each.pair.id: each for each in own}.values():
            outcome = outcomes.get(each.pair.id)
            choice = None if outcome in (None, 0.5) else each.pair.responses[0 if outcome == 1 else 1].id
            found.append(replace(each, choice=choice, tie=outcome == 0.5, skipped=outcome is None))
    return found


def _systems(pair: Pair) -> set[str]:
    return {each.model for each in pair.responses}


def _rates(whole: Sequence[tuple[Pair, float]]) -> list[WinRate]:
    """Each system against each other that it met; the one that was named first is the one that is said to win or lose."""
    met: dict[frozenset[str], tuple[str, str]] = {}
    shares: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for pair, outcome in whole:
        first, second = (each.model for each in pair.responses)
        if first != second:
            system, against = met.setdefault(frozenset((first, second)), (first, second))
            shares[system, against][prompt_key(pair.prompt)].append(outcome if first == system else 1 - outcome)
    return [_rate(system, against, by_prompt, len(shares)) for (system, against), by_prompt in shares.items()]


def _rate(system: str, against: str, by_prompt: Mapping[str, Sequence[float]], num_tests: int) -> WinRate:
    tally = Tally()
    for outcome in (each for outcomes in by_prompt.values() for each in outcomes):
        tally = tally.with_outcome(outcome)
    share_N = [statistics.fmean(outcomes) for outcomes in by_prompt.values()]
    # Drawn anew, prompts that are all alike have no spread: the score interval has a width there too.
    alike = len(set(share_N)) == 1
    rate = wilson(sum(share_N), len(share_N)) if alike else bootstrap_mean(share_N)
    p = sign_test([share - 0.5 for share in share_N])
    return WinRate(system, against, tally, len(share_N), rate, p, num_tests)
