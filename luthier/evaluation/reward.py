"""How well a reward model ranks answers that people ranked, against ranking them by their length; and what it goes by.

A base with a new head ranks nothing, so what the reward model is compared with is the best that needs no reading: the longer answer,
or the shorter, whichever is better more often in these rows.
Shapes: K answers of a row, P pairs, A answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, combinations
from pathlib import Path

import numpy as np

from luthier.evaluation.candidates import Candidate, comparisons, head_logits
from luthier.evaluation.intervals import Estimate, bootstrap_mean
from luthier.evaluation.measure import Measure
from luthier.evaluation.pairwise import (
    Bin,
    ByLength,
    Column,
    LengthBias,
    Pairs,
    by_length,
    by_row,
    calibration,
    histogram,
    hits,
    length_bias,
    pair_losses,
    reliability,
)
from luthier.evaluation.rows import Rows
from luthier.evaluation.verdict import Answered, Details, Evaluation, Table, in_words
from luthier.prediction.passes import Passes
from luthier.types import Answered as Answer
from luthier.types import Conversation, Example, Part, Preference, Ranking, Record

LENGTH = "length"
_ROWS_TURNED = 64


@dataclass(frozen=True)
class RewardDetails(Details):
    """What a reward model's scores are like. All scores and gaps are raw: before gain and bias.

    error: of calibration (ECE). turned: the most that a score changes when the answers of its row are put in the other order.
    within: the standard deviation of scores around their row's mean, over that of all scores.
    """

    error: Estimate
    bins: tuple[Bin, ...]
    gaps: tuple[tuple[float, float, int], ...]
    lengths: tuple[ByLength, ...]
    bias: LengthBias
    turned: float
    within: float
    lowest: float
    mean: float
    highest: float

    def tables(self) -> tuple[Table, ...]:
        """Facts, calibration, margins and length, as rows of text."""
        bias = self.bias
        facts = [
            ["what", "value"],
            ["calibration error (ECE)", in_words(self.error)],
            ["raw scores, lowest, mean, highest", f"{self.lowest:.3f}, {self.mean:.3f}, {self.highest:.3f}"],
            ["spread within rows, of all spread", f"{self.within:.3f}"],
            ["length: correlation with scores", f"{bias.of_scores:+.3f}"],
            ["length: correlation with margins", f"{bias.of_gaps:+.3f}"],
            ["length: the better answer is the longer", _said(bias.longer_is_better)],
            ["length: accuracy where it is", _said(bias.when_longer)],
            ["length: accuracy where it is the shorter", _said(bias.when_shorter)],
            ["position: most that turning a row round changes", f"{self.turned:.2g}"],
        ]
        chances = [[f"{b.low:.1f} to {b.high:.1f}", str(b.count), f"{b.mean:.3f}", f"{b.right:.3f}"] for b in self.bins]
        margins = [[f"{low:+.3f} to {high:+.3f}", str(count)] for low, high, count in self.gaps]
        lengths = [[f"{b.low:+.0f} to {b.high:+.0f}", str(b.count), in_words(b.accuracy)] for b in self.lengths]
        return (
            Table("Scores", facts),
            Table("Calibration, each pair in both orders", [["chance", "orders", "mean", "came so"], *chances]),
            Table("Margins", [["raw margin", "pairs"], *margins]),
            Table("Length", [["letters more of the better answer", "pairs", "accuracy"], *lengths]),
        )

    def as_json(self) -> dict[str, object]:
        """The same as JSON values."""
        bias = self.bias
        return {
            "calibration_error": vars(self.error),
            "reliability": [vars(each) for each in self.bins],
            "margins": [{"low": low, "high": high, "count": count} for low, high, count in self.gaps],
            "lengths": [{**vars(each), "accuracy": vars(each.accuracy)} for each in self.lengths],
            "length_bias": {
                "correlation_with_scores": bias.of_scores,
                "correlation_with_margins": bias.of_gaps,
                "longer_is_better": _json(bias.longer_is_better),
                "accuracy_when_longer": _json(bias.when_longer),
                "accuracy_when_shorter": _json(bias.when_shorter),
            },
            "position": {"most_changed": self.turned},
            "scores": {"lowest": self.lowest, "mean": self.mean, "highest": self.highest, "within_rows": self.within},
        }

    def write_picture(self, path: Path) -> None:
        """Write calibration, margins and accuracy by length as a PNG."""
        from luthier.evaluation.reward_picture import write_reward_picture

        write_reward_picture(self.bins, self.gaps, self.lengths, path)


def evaluate_rewards(
    candidates: Sequence[Candidate], rows: Rows, passes: Passes, limit: int | None = None
) -> Evaluation:
    """The reward models against length: accuracy over pairs of which one is better (a tie of scores counts half) and loss.

    The details are those of the first. limit: use only the first so many rows.
    Raises: DataError, if there are no rows, or one is beyond a model's context.
    """
    rows = rows.first(limit)
    said = [_scores(candidate, rows.examples, passes, "scores") for candidate in candidates]
    letters = [letters_of(record) for record, _ in rows.records]
    pairs = [pairs_of(rows.examples, scores, letters) for scores in said]
    length_gap_P, which = by_length_alone(pairs[0])
    details = _details(candidates[0], rows.examples, said[0], letters, pairs[0], passes)
    note = (
        f"{LENGTH} takes the {which} answer for the better one, as these rows do more often, with the chance that they give it; a base "
        "with a new head ranks nothing."
    )
    names = tuple(candidate.name for candidate in candidates)
    whose = (f"Scores, calibration, margins and length are told of {names[0]} alone.",) if len(names) > 1 else ()
    return Evaluation(
        candidates=(LENGTH, *names),
        num_rows=len(rows.examples),
        measures=pair_measures([length_gap_P, *(each.gap_P for each in pairs)], pairs[0]),
        notes=(*rows.notes, *_of_ties(pairs[0]), note, *whose),
        answers=tuple(
            Answered(
                origin,
                *_texts(record),
                (_row_text(letters[row], "{:.0f}"), *(_row_text(scores[row], "{:.3f}") for scores in said)),
            )
            for row, (record, origin) in enumerate(rows.records)
        ),
        details=details,
    )


def _scores(candidate: Candidate, examples: Sequence[Example], passes: Passes, what: str) -> list[Column]:
    """The raw scores of each row's answers."""
    (said,) = head_logits([candidate], examples, passes, what)
    return [score_K1[:, 0].double().numpy() for score_K1 in said]


def pair_measures(gaps: Sequence[Column], pairs: Pairs) -> tuple[Measure, ...]:
    """Accuracy and loss (nats a pair) of each candidate's gaps, each later one against the first; intervals are over rows."""
    at = pairs.is_ordered_P
    measures = []
    if at.any():
        right = [by_row(hits(gap_P[at]), pairs.row_P[at]) for gap_P in gaps]
        measures.append(_measure("accuracy", True, [means for means, _ in right], right[0][1]))
    losses = [by_row(pair_losses(gap_P, pairs.probability_P), pairs.row_P) for gap_P in gaps]
    return (*measures, _measure("loss", False, [means for means, _ in losses], losses[0][1]))


def _measure(name: str, is_high: bool, values: Sequence[Sequence[float]], weights: Sequence[float]) -> Measure:
    estimates = tuple(bootstrap_mean(column, weights) for column in values)
    return Measure(name, is_high, len(weights), estimates, comparisons(values, weights))


def pairs_of(examples: Sequence[Example], scores: Sequence[Column], letters: Sequence[Column]) -> Pairs:
    """Every two answers of each row, the better one first."""
    gaps, chances, more, of_row = [], [], [], []
    for row, (example, score_K, letters_K) in enumerate(zip(examples, scores, letters, strict=True)):
        for i, j in combinations(range(example.num_learned), 2):
            chance = float(example.weight_N[i])
            if example.num_learned > 2:
                chance = float(np.sign(example.token_N[j] - example.token_N[i]) + 1) / 2
            first, second = (i, j) if chance >= 0.5 else (j, i)
            gaps.append(float(score_K[first] - score_K[second]))
            more.append(float(letters_K[first] - letters_K[second]))
            chances.append(max(chance, 1 - chance))
            of_row.append(row)
    return Pairs(np.array(gaps), np.array(chances), np.array(more), np.array(of_row, dtype=np.int64))


def by_length_alone(pairs: Pairs) -> tuple[Column, str]:
    """The gaps of a rule that knows length alone, and which answer it prefers: the log-odds that these rows give it; 0 at equal lengths."""
    ordered = pairs.ordered
    sign_P = np.sign(ordered.letters_P)
    longer, shorter = float((sign_P > 0).sum()), float((sign_P < 0).sum())
    odds = float(
        np.log((longer + 0.5) / (shorter + 0.5))
    )  # half a pair more of each: rows that all agree give no infinite odds
    return np.sign(pairs.letters_P) * odds, "longer" if odds >= 0 else "shorter"


def letters_of(record: Record) -> Column:
    """How many letters each of a row's answers has, from where they part."""
    answers = _answers(record)
    if not all(isinstance(answer, Conversation) for answer in answers):
        return np.array([float(len(_last(answer))) for answer in answers])
    turns = [answer.messages for answer in answers if isinstance(answer, Conversation)]
    shared = next((i for i, same in enumerate(zip(*turns, strict=False)) if len(set(map(str, same))) > 1), 0)
    return np.array([float(sum(len(turn.content) for turn in each[shared:])) for each in turns])


def turned(example: Example) -> Example:
    """The same answers in the other order."""
    num_lead = int(any(part.parent is not None for part in example.parts))
    starts = [0, *accumulate(len(part.tokens_T) for part in example.parts)]
    order = [*range(num_lead), *reversed(range(num_lead, len(example.parts)))]
    moved = dict(zip(order, accumulate([len(example.parts[i].tokens_T) for i in order], initial=0), strict=False))
    at_N = np.searchsorted(starts, example.source_N, side="right") - 1
    source_N = np.array(
        [moved[i] + at - starts[i] for i, at in zip(at_N.tolist(), example.source_N.tolist(), strict=True)]
    )
    types = example.types_P
    return replace(
        example,
        parts=tuple(Part(example.parts[i].tokens_T, example.parts[i].parent) for i in order),
        source_N=source_N[::-1].astype(np.int64),
        token_N=example.token_N[::-1].copy(),
        weight_N=example.weight_N[::-1].copy(),
        value_N=None if example.value_N is None else example.value_N[::-1].copy(),
        types_P=None if types is None else np.concatenate([types[starts[i] : starts[i + 1]] for i in order]),
    )


def _details(
    candidate: Candidate,
    examples: Sequence[Example],
    scores: Sequence[Column],
    letters: Sequence[Column],
    pairs: Pairs,
    passes: Passes,
) -> RewardDetails:
    few = examples[:_ROWS_TURNED]
    of_turned = _scores(candidate, [turned(each) for each in few], passes, "scores, rows turned round")
    again = [score_K[::-1] for score_K in of_turned]
    changed = max(float(np.abs(one - other).max()) for one, other in zip(scores, again, strict=False))
    score_A, around_A = np.concatenate(scores), np.concatenate([score_K - score_K.mean() for score_K in scores])
    spread = float(score_A.std())
    return RewardDetails(
        error=calibration(pairs),
        bins=reliability(pairs.gap_P, pairs.probability_P),
        gaps=histogram(pairs.ordered.gap_P if pairs.is_ordered_P.any() else pairs.gap_P),
        lengths=by_length(pairs),
        bias=length_bias(pairs, score_A, np.concatenate(letters)),
        turned=changed,
        within=float(around_A.std()) / spread if spread else 0.0,
        lowest=float(score_A.min()),
        mean=float(score_A.mean()),
        highest=float(score_A.max()),
    )


def _answers(record: Record) -> tuple[Answer, ...]:
    if isinstance(record, Preference):
        return record.chosen, record.rejected
    assert isinstance(record, Ranking), "rows with ranked answers were asked for"
    return record.answers


def _last(answer: Answer) -> str:
    return answer.messages[-1].content if isinstance(answer, Conversation) else answer.completion


def _texts(record: Record) -> tuple[str, str]:
    """What was asked last, and the best answer."""
    answers = _answers(record)
    best = answers[record.places.index(0) if isinstance(record, Ranking) else 0]
    asked = best.messages[-2].content if isinstance(best, Conversation) else best.prompt
    return asked, _last(best)


def _row_text(values_K: Column, form: str) -> str:
    return " | ".join(form.format(value) for value in values_K.tolist())


def _of_ties(pairs: Pairs) -> tuple[str, ...]:
    num = int((~pairs.is_ordered_P).sum())
    return (f"{num} of {len(pairs.gap_P)} pairs are ties: they do not count for accuracy.",) if num else ()


def _said(estimate: Estimate | None) -> str:
    return "no such pair" if estimate is None else in_words(estimate)


def _json(estimate: Estimate | None) -> dict[str, float] | None:
    return None if estimate is None else dict(vars(estimate))
