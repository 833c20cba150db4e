"""How a model ranks answers that people judged: base against tuned, by the log-probability that each gives them.

Shapes: R rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from luthier.evaluation.candidates import Candidate, comparisons
from luthier.evaluation.intervals import bootstrap_mean
from luthier.evaluation.measure import SCORE_MARGIN, Measure, open_scale_of
from luthier.evaluation.rows import Rows
from luthier.evaluation.verdict import Evaluation
from luthier.prediction.passes import Passes, check_fits, logprobs, said_of_each

CHOSEN, REJECTED = 0, 1
Column = NDArray[np.float64]


def evaluate_pairs(candidates: Sequence[Candidate], rows: Rows, passes: Passes, limit: int | None = None) -> Evaluation:
    """How often each candidate finds the better of two answers likelier, as a whole and by the token (a tie counts half), and by
    how many nats.

    What a candidate adds to the first one's margin, times β, is the margin of DPO's implicit rewards; the implicit accuracy is how
    often it has the right sign, a half of the first. limit: use only the first so many rows.
    Raises: DataError, if there are no rows, or one is beyond a model's context.
    """
    rows = rows.first(limit)
    whole, mean = [], []
    for candidate in candidates:
        sums, counts = _summed(candidate, rows, passes)
        whole.append(sums[CHOSEN] - sums[REJECTED])
        mean.append(sums[CHOSEN] / counts[CHOSEN] - sums[REJECTED] / counts[REJECTED])
    measures = (
        _measure("accuracy", [(np.sign(margin_R) + 1) / 2 for margin_R in whole]),
        _measure("accuracy by the token", [(np.sign(margin_R) + 1) / 2 for margin_R in mean]),
        _measure("implicit accuracy", [(np.sign(margin_R - whole[0]) + 1) / 2 for margin_R in whole]),
        _measure("margin", whole),
    )
    return Evaluation(tuple(each.name for each in candidates), len(rows.examples), measures, rows.notes, ())


def evaluate_verdicts(
    candidates: Sequence[Candidate], rows: Rows, passes: Passes, limit: int | None = None
) -> Evaluation:
    """The loss (nats a token) that each candidate has of good answers, and of bad ones; arguments and Raises as above."""
    rows = rows.first(limit)
    good_R = np.array([float(_value(example.value_N)) > 0.5 for example in rows.examples])
    losses = []
    for candidate in candidates:
        sums, counts = _summed(candidate, rows, passes)
        losses.append(-sums[CHOSEN] / counts[CHOSEN])
    measures = tuple(
        _measure(name, [loss_R[is_one_R] for loss_R in losses], is_better_high)
        for name, is_one_R, is_better_high in (
            ("loss of good answers", good_R, False),
            ("loss of bad answers", ~good_R, True),
        )
        if is_one_R.any()
    )
    return Evaluation(tuple(each.name for each in candidates), len(rows.examples), measures, rows.notes, ())


def _value(value_N: NDArray[np.float32] | None) -> np.float32:
    assert value_N is not None, "rows of verdicts have one"
    first: np.float32 = value_N[0]
    return first


def _summed(candidate: Candidate, rows: Rows, passes: Passes) -> tuple[list[Column], list[Column]]:
    """log p of each row's two answers, summed over their tokens, and how many these are."""
    check_fits(candidate.model, candidate.adapter, rows.examples)
    said = said_of_each(
        candidate.model, candidate.adapter, rows.examples, logprobs, passes, f"{candidate.name}: answers given"
    )
    sums, counts = [], []
    for sample in (CHOSEN, REJECTED):
        at = [example.sample_N == sample for example in rows.examples]
        sums.append(np.array([float(each.double()[is_one].sum()) for each, is_one in zip(said, at, strict=True)]))
        counts.append(np.array([float(is_one.sum()) for is_one in at]))
    return sums, counts


def _measure(name: str, of_each: Sequence[Column], is_better_high: bool = True) -> Measure:
    """A mean over rows, for each candidate, each later one against the first."""
    values = [column_R.tolist() for column_R in of_each]
    estimates = tuple(bootstrap_mean(column) for column in values)
    margin, span = (SCORE_MARGIN, 1.0) if "accuracy" in name else open_scale_of(values)
    return Measure(name, is_better_high, len(values[0]), estimates, comparisons(values), margin, span=span)
