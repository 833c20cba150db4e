"""What a person's judgments come to: win shares with intervals, how far they can be trusted, and rows to train on."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from luthier.evaluation.intervals import Estimate, wilson
from luthier.evaluation.judged.blind import Asked
from luthier.evaluation.judged.judgments import Judgment, judgment_of
from luthier.evaluation.judged.pairs import PositionBias, Tally, position_bias
from luthier.evaluation.judged.records import Record

_UNSURE = 0.05


@dataclass(frozen=True)
class WinShare:
    """How a system did against another: judgments, and its share of wins (a tie is half of one), each prompt counting once."""

    system: str
    against: str
    tally: Tally
    share: Estimate


@dataclass(frozen=True)
class PersonSummary:
    """Judgments in numbers. num_judged: those that were not skipped, ties and "both bad" among them.

    median_seconds: None where nothing was judged. rewards: of the choices between answers with different rewards, the share
    that fell on the greater one, and how many there were; None where there are none.
    """

    num_judged: int
    num_ties: int
    num_both_bad: int
    num_skipped: int
    annotators: tuple[str, ...]
    shares: tuple[WinShare, ...]
    position: PositionBias
    first_share: Estimate | None
    median_seconds: float | None
    rewards: Estimate | None
    num_with_rewards: int

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return asdict(self)

    def as_lines(self) -> list[str]:
        """The same in words."""
        if not self.num_judged:
            return [f"Nothing is judged yet; {self.num_skipped:,} skipped."]
        told = [
            f"{self.num_judged:,} judged by {', '.join(self.annotators)}: {self.num_ties:,} ties "
            f"({self.num_ties / self.num_judged:.1%}), {self.num_both_bad:,} of them both bad; {self.num_skipped:,} skipped.",
            f"Median time: {self.median_seconds:.1f} s.",
        ]
        for each in self.shares:
            tally = each.tally
            told.append(
                f"{each.system} against {each.against}: {_percent(each.share)} "
                f"({tally.wins:,} won, {tally.ties:,} tied, {tally.losses:,} lost)."
            )
        if self.rewards is not None:
            told.append(
                f"The answer with the greater reward was chosen: {_percent(self.rewards)} of {self.num_with_rewards:,}."
            )
        if self.first_share is not None:
            position = self.position
            verdict = "more than chance explains" if position.p < _UNSURE else "as chance may have it"
            told.append(
                f"The answer shown first was chosen: {_percent(self.first_share)} "
                f"({position.first:,} of {position.first + position.second:,}, p {position.p:.2g}: {verdict})."
            )
        return told


def _percent(estimate: Estimate) -> str:
    return f"{estimate.value:.1%} [{estimate.low:.1%}, {estimate.high:.1%}]"


def summary_of(records: Sequence[Record]) -> PersonSummary:
    """All judgments in numbers, whoever made them."""
    judgments = [found for each in records if (found := judgment_of(each)) is not None]
    judged = [each for each in records if not each.skipped]
    position = position_bias(judgments)
    num_decided = position.first + position.second
    by_reward = [right for each in records if (right := _follows_reward(each)) is not None]
    return PersonSummary(
        num_judged=len(judged),
        num_ties=sum(each.tie for each in judged),
        num_both_bad=sum(each.both_bad for each in judged),
        num_skipped=len(records) - len(judged),
        annotators=tuple(dict.fromkeys(each.annotator for each in records)),
        shares=tuple(_shares(judgments)),
        position=position,
        first_share=wilson(position.first, num_decided) if num_decided else None,
        median_seconds=statistics.median(each.seconds for each in judged) if judged else None,
        rewards=wilson(sum(by_reward), len(by_reward)) if by_reward else None,
        num_with_rewards=len(by_reward),
    )


def _shares(judgments: Sequence[Judgment]) -> list[WinShare]:
    """Each system against each later one (by name) that it met."""
    systems = sorted({name for one in judgments for name in (one.first, one.second)})
    found = []
    for system, against in combinations(systems, 2):
        tally, by_prompt = Tally(), defaultdict(list)
        for one in judgments:
            if {one.first, one.second} == {system, against}:
                outcome = one.outcome if one.first == system else 1 - one.outcome
                tally = tally.with_outcome(outcome)
                by_prompt[one.question].append(outcome)
        if tally.games:
            # several judgments of one prompt are not independent: together they count as one
            wins = sum(statistics.fmean(outcomes) for outcomes in by_prompt.values())
            found.append(WinShare(system, against, tally, wilson(wins, len(by_prompt))))
    return found


def _follows_reward(record: Record) -> bool | None:
    """Whether the choice fell on the answer with the greater reward; None where there is no choice, or none is greater."""
    rewards = {each.id: each.reward for each in record.pair.responses}
    known = [reward for reward in rewards.values() if reward is not None]
    if record.choice is None or len(known) < 2 or known[0] == known[1]:
        return None
    return rewards[record.choice] == max(known)


# ── rows to train on ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class PreferenceRows:
    """Rows with prompt, chosen and rejected, and why other judgments gave none.

    num_both_ways: pairs of which some chose the one answer and some the other; all of those are among the rows.
    """

    rows: tuple[dict[str, Any], ...]
    num_ties: int
    num_skipped: int
    num_empty: int
    num_both_ways: int

    def as_lines(self) -> list[str]:
        """What was left out, in words."""
        left_out = [
            (self.num_ties, "ties"),
            (self.num_skipped, "skipped"),
            (self.num_empty, "with an empty answer, which nothing can be learned from"),
        ]
        told = [f"{number:,} {what}" for number, what in left_out if number]
        lines = [f"Left out: {'; '.join(told)}."] if told else []
        if self.num_both_ways:
            lines.append(f"{self.num_both_ways:,} pairs were judged both ways; the rows hold both.")
        return lines

    def as_json(self) -> dict[str, Any]:
        """The counts, as JSON values."""
        counts = {name: value for name, value in asdict(self).items() if name != "rows"}
        return {"num_rows": len(self.rows), **counts}


def preference_rows(records: Sequence[Record]) -> PreferenceRows:
    """A row for each choice, in the form that preferences and rewards are learned from."""
    rows, chosen = [], defaultdict(set)
    num_empty = 0
    for record in records:
        if record.choice is None:
            continue
        first, second = record.pair.responses
        better, worse = (first, second) if record.choice == first.id else (second, first)
        if not (better.text.strip() and worse.text.strip()):
            num_empty += 1
            continue
        chosen[record.pair.id].add(record.choice)
        rows.append(_row(record.pair.prompt, better.text, worse.text))
    return PreferenceRows(
        tuple(rows),
        num_ties=sum(each.tie for each in records),
        num_skipped=sum(each.skipped for each in records),
        num_empty=num_empty,
        num_both_ways=sum(len(each) > 1 for each in chosen.values()),
    )


def _row(prompt: Asked, chosen: str, rejected: str) -> dict[str, Any]:
    """Answers to messages are messages too."""
    if isinstance(prompt, str):
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    answers = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
    return {"prompt": prompt, **dict(zip(("chosen", "rejected"), answers, strict=True))}
