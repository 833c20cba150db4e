"""The one sentence that an evaluation comes to: better, same, worse, forgot, or unclear, with its evidence.

What is answered counts before how likely the references are: a loss that fell while the answers got worse is no gain. Where
several measures of the answers are taken, each must be as unlikely by chance as their number asks (Bonferroni). A model that
lost what it knew beyond the rows forgot, whatever else it won.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from luthier.evaluation.forgetting.found import Forgetting
from luthier.evaluation.intervals import Estimate
from luthier.evaluation.measure import ALPHA, FEWEST_ROWS, Measure, Verdict

Kind = Literal["better", "same", "worse", "forgot", "unclear"]

_SURE = 0.001


@dataclass(frozen=True)
class Outcome:
    """What an evaluation comes to for one candidate against the first."""

    kind: Kind
    sentence: str


@dataclass(frozen=True)
class _Judged:
    """The measures of the rows by what each says."""

    kind: Verdict
    votes: tuple[tuple[Measure, Verdict], ...]

    def with_vote(self, *kinds: Verdict) -> list[Measure]:
        return [measure for measure, vote in self.votes if vote in kinds]


def outcome_of(
    measures: Sequence[Measure], index: int, names: Sequence[str], num_rows: int, forgetting: Forgetting | None
) -> Outcome:
    """What the measures and the probe say of candidate `index` (1 or more) against the first."""
    judged = _judged(measures, index)
    lost = [] if forgetting is None else forgetting.lost(index)
    kind: Kind = "forgot" if lost else judged.kind
    rows = f"{num_rows} row{'' if num_rows == 1 else 's'}"
    if lost:
        told = _listed([evidence(measure, index) for measure in lost])
        return Outcome(kind, f"{names[index]} forgot: {told}. {_on_rows(judged, index, rows)}")
    sentence = f"{names[index]} {_SAID[judged.kind].format(first=names[0], rows=rows)}: {_because(judged, index)}"
    if forgetting is not None:
        sentence += f"; {forgetting.said(index)}"
    return Outcome(kind, sentence + ".")


_SAID: dict[Verdict, str] = {
    "better": "is better than {first} on {rows}",
    "same": "is the same as {first} on {rows}",
    "worse": "is worse than {first} on {rows}",
    "unclear": "may or may not differ from {first} on {rows}",
}


def _judged(measures: Sequence[Measure], index: int) -> _Judged:
    of_answers = [m for m in measures if m.witness == "answers" and m.comparisons[index - 1].difference is not None]
    of_likelihood = [
        m for m in measures if m.witness == "likelihood" and m.comparisons[index - 1].difference is not None
    ]
    answers = _votes(of_answers, index, ALPHA / max(1, len(of_answers)))
    likelihood = _votes(of_likelihood, index, ALPHA / max(1, len(of_likelihood)))
    every = (*likelihood, *answers)
    for votes in (answers, likelihood):
        kinds = {vote for _, vote in votes}
        if len(clear := kinds & {"better", "worse"}) == 2:
            return _Judged("unclear", every)
        if clear:
            return _Judged("better" if "better" in clear else "worse", every)
    telling, beside = (likelihood, answers) if likelihood else (answers, ())
    is_same = bool(telling) and all(vote == "same" for _, vote in telling)
    # few rows cannot show that answers stay the same, but where not one of them changed, nothing speaks against the loss
    untold = [m for m, vote in beside if vote != "same" and not m.comparisons[index - 1].is_untouched]
    return _Judged("same" if is_same and not untold else "unclear", every)


def _votes(measures: Sequence[Measure], index: int, alpha: float) -> tuple[tuple[Measure, Verdict], ...]:
    votes = [(measure, measure.verdict(index, alpha)) for measure in measures]
    return tuple((measure, vote) for measure, vote in votes if vote is not None)


def _because(judged: _Judged, index: int) -> str:
    """The measures that speak for the verdict, and those against it."""
    if judged.kind == "unclear":
        return _unclear(judged, index)
    if judged.kind == "same":
        shown = [f"{evidence(m, index)}, within ±{m.margin:.2g}" for m in judged.with_vote("same")]
        return _listed([*shown, *(evidence(measure, index) for measure in judged.with_vote("unclear"))])
    said = _listed([evidence(measure, index) for measure in judged.with_vote(judged.kind)])
    against = judged.with_vote("worse" if judged.kind == "better" else "better")
    turned = _listed([evidence(measure, index) for measure in against])
    return said + (f"; but {turned}" if turned else "")


def _unclear(judged: _Judged, index: int) -> str:
    better, worse = judged.with_vote("better"), judged.with_vote("worse")
    if better or worse:
        sides = [("better", better), ("worse", worse)]
        return "; ".join(f"{kind} by {_listed([evidence(m, index) for m in side])}" for kind, side in sides if side)
    if all(measure.num_rows < FEWEST_ROWS for measure, _ in judged.votes):
        return f"they are too few (fewer than {FEWEST_ROWS}) for a verdict"
    open_ones = [evidence(measure, index) for measure in judged.with_vote("unclear")]
    return f"neither a difference nor its absence is shown by {_listed(open_ones)}"


def _on_rows(judged: _Judged, index: int, rows: str) -> str:
    """What is to be said of the rows where something else decided."""
    if judged.kind == "unclear":
        return f"On {rows} there is no clear difference."
    than = "the same" if judged.kind == "same" else judged.kind
    return f"On {rows} it is {than}: {_because(judged, index)}."


def evidence(measure: Measure, index: int) -> str:
    """A measure before and after, the difference with its interval, on how many rows it is so, and the sign test."""
    found = measure.comparisons[index - 1]
    assert found.difference is not None
    before, after = measure.estimates[0].value, measure.estimates[index].value
    text = f"{measure.name} {before:.3f} → {after:.3f} ({with_interval(found.difference, lambda x: f'{x:+.3g}')}"
    if found.sign_test_p is not None:
        won, lost = (found.rises, found.falls) if measure.higher_is_better else (found.falls, found.rises)
        p = _chance(found.sign_test_p)
        text += f"; better on {won} rows, worse on {lost}, {p}" if won or lost else "; no row differs"
    elif found.bootstrap_p is not None:
        text += f"; {_chance(found.bootstrap_p)}"
    return text + ")"


def _chance(p: float) -> str:
    return f"p < {_SURE}" if p < _SURE else f"p = {p:.2g}"


def with_interval(estimate: Estimate, text: Callable[[float], str]) -> str:
    """An estimate and its interval, each number as `text` writes it."""
    return f"{text(estimate.value)} [{text(estimate.low)}, {text(estimate.high)}]"


def _listed(items: Sequence[str]) -> str:
    return ", ".join(items)
