"""How well a model chooses among options: against choosing by their places alone.

The best that needs no text: the place where the right option is most often as the answer, and how often it is there as the
probability (of as many places as a question has).
Shapes: K options of a question.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from luthier.evaluation.candidates import Candidate, comparisons, head_logits
from luthier.evaluation.intervals import wilson
from luthier.evaluation.loss_by_row import mean_loss
from luthier.evaluation.measure import Measure
from luthier.evaluation.rows import Rows, calibration_measure
from luthier.evaluation.verdict import Answered, Evaluation
from luthier.prediction.passes import Passes
from luthier.types import Choice, FloatArray

POSITION = "position"


def evaluate_choices(
    candidates: Sequence[Candidate], rows: Rows, passes: Passes, limit: int | None = None
) -> Evaluation:
    """The candidates against the options' places: loss and accuracy.

    limit: use only the first so many rows. Raises: DataError, if there are no rows, or one is beyond a model's context.
    """
    rows = rows.first(limit)
    said = head_logits(candidates, rows.examples, passes, "options")
    right = [int(example.weight_N.argmax()) for example in rows.examples]
    counts = [example.num_learned for example in rows.examples]
    logprobs = [
        by_position(right, counts),
        *([logits_K1[:, 0].log_softmax(0).numpy() for logits_K1 in each] for each in said),
    ]
    chance = sum(1 / count for count in counts) / len(counts)
    most = int(np.bincount(right).argmax())
    note = (
        f"{POSITION} goes by the places of the options: the right one is most often number {most + 1}. By chance "
        f"{chance:.3f} of the answers would be right; a base with a new head does no better."
    )
    names = (POSITION, *(each.name for each in candidates))
    return Evaluation(
        candidates=names,
        num_rows=len(right),
        measures=(*choice_measures(logprobs, right), calibration_measure(logprobs, right)),
        notes=(*rows.notes, note),
        answers=tuple(
            Answered(
                origin,
                record.question,
                record.options[record.answer],
                tuple(record.options[int(of[row].argmax())] for of in logprobs),
            )
            for row, (record, origin) in enumerate(rows.records)
            if isinstance(record, Choice)
        ),
    )


def by_position(right: Sequence[int], counts: Sequence[int]) -> list[FloatArray]:
    """Log-probabilities (K,) of each question's options by how often the right one is at their places. counts: of options."""
    often = np.bincount(right, minlength=max(counts)).astype(np.float32)
    with np.errstate(divide="ignore"):  # a place that is never right has probability 0
        return [np.log(often[:count] / often[:count].sum()) for count in counts]


def choice_measures(logprobs: Sequence[Sequence[FloatArray]], right: Sequence[int]) -> tuple[Measure, ...]:
    """Loss (nats a question) and accuracy of each candidate, each later one against the first."""
    losses = [[float(-logprob_K[k]) for logprob_K, k in zip(each, right, strict=True)] for each in logprobs]
    hits = [[float(logprob_K.argmax() == k) for logprob_K, k in zip(each, right, strict=True)] for each in logprobs]
    return (
        mean_loss(losses),
        Measure("accuracy", True, len(right), tuple(wilson(round(sum(h)), len(h)) for h in hits), comparisons(hits)),
    )
