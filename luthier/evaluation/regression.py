"""How well a model gives texts numbers: against always giving their mean.

Shapes: R rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from luthier.evaluation.candidates import Candidate, comparisons, head_logits
from luthier.evaluation.intervals import bootstrap_mean
from luthier.evaluation.measure import Measure, open_scale_of
from luthier.evaluation.metrics import pearson, spearman
from luthier.evaluation.rows import Rows, statistic_measure
from luthier.evaluation.verdict import Answered, Evaluation
from luthier.prediction.passes import Passes
from luthier.types import Scored

MEAN = "mean"
Column = NDArray[np.float64]


def evaluate_scores(
    candidates: Sequence[Candidate], rows: Rows, passes: Passes, limit: int | None = None
) -> Evaluation:
    """The candidates against the mean of the rows' numbers: mean squared error, and Pearson's and Spearman's correlation.

    limit: use only the first so many rows. Raises: DataError, if there are no rows, or one is beyond a model's context.
    """
    rows = rows.first(limit)
    said = head_logits(candidates, rows.examples, passes, "numbers")
    true_R = np.array([example.value_N for example in rows.examples], dtype=np.float64)[:, 0]
    scores = [np.array([float(logits_1C[0, 0]) for logits_1C in each], dtype=np.float64) for each in said]
    given = [np.full_like(true_R, true_R.mean()), *scores]
    note = (
        f"{MEAN} always answers {true_R.mean():.6g}, the mean of these rows, whose correlation counts as 0; "
        "a base with a new head knows nothing."
    )
    return Evaluation(
        candidates=(MEAN, *(each.name for each in candidates)),
        num_rows=len(true_R),
        measures=score_measures(given, true_R),
        notes=(*rows.notes, note),
        answers=tuple(
            Answered(
                origin,
                record.text if record.pair is None else f"{record.text} | {record.pair}",
                f"{record.score:.6g}",
                tuple(f"{column_R[row]:.6g}" for column_R in given),
            )
            for row, (record, origin) in enumerate(rows.records)
            if isinstance(record, Scored)
        ),
    )


def score_measures(given: Sequence[Column], true_R: Column) -> tuple[Measure, ...]:
    """Mean squared error, Pearson's and Spearman's correlation of each candidate's numbers, each later one against the first."""

    def correlation(of: Column, measure: Callable[[Column, Column], float], index_R: NDArray[np.int64]) -> float:
        return measure(of[index_R], true_R[index_R])

    errors = [np.square(column_R - true_R).tolist() for column_R in given]
    squared = tuple(bootstrap_mean(error) for error in errors)
    margin, span = open_scale_of(errors)
    return (
        Measure("mean squared error", False, len(true_R), squared, comparisons(errors), margin, span=span),
        *(
            statistic_measure(
                name, [partial(correlation, column_R, measure) for column_R in given], len(true_R), span=2.0
            )
            for name, measure in (("Pearson", pearson), ("Spearman", spearman))
        ),
    )
