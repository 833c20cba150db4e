"""How well a model knows the tokens that an objective of pre-training hides or lets it write: base against tuned.

The texts are hidden, cut or noised as the run did it to those that it held out, once and the same for all candidates.
Shapes: N targets of a text, R rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from luthier.evaluation.compare import Candidate, RowLosses, comparisons, loss_measures, task_measures
from luthier.evaluation.intervals import bootstrap_mean
from luthier.evaluation.rows import Rows
from luthier.evaluation.verdict import Evaluation, Measure
from luthier.prediction.passes import Passes, check_fits, likelihoods, said_of_each


def evaluate_targets(
    candidates: Sequence[Candidate], rows: Rows, passes: Passes, limit: int | None = None
) -> Evaluation:
    """All candidates on the same rows: loss per token, perplexity, and how often the likeliest token is the right one.

    The first candidate is what the others are compared with. limit: use only the first so many rows.
    Raises: DataError, if there are no rows, or one is beyond a model's context.
    """
    rows = rows.first(limit)
    weights = [torch.from_numpy(example.weight_N).double() for example in rows.examples]
    weight_R = torch.stack([weight_N.sum() for weight_N in weights])
    losses, shares = [], []
    for candidate in candidates:
        check_fits(candidate.model, candidate.adapter, rows.examples)
        said = said_of_each(
            candidate.model, candidate.adapter, rows.examples, likelihoods, passes, f"{candidate.name}: loss"
        )
        sums_R2 = torch.stack([weight_N @ said_N2 for weight_N, said_N2 in zip(weights, said, strict=True)])
        losses.append(RowLosses(-sums_R2[:, 0], weight_R))
        shares.append((sums_R2[:, 1] / weight_R).tolist())
    of_rows = weight_R.tolist()
    accuracy = Measure(
        "accuracy",
        True,
        len(of_rows),
        tuple(bootstrap_mean(share, of_rows) for share in shares),
        comparisons(shares, of_rows),
    )
    return Evaluation(
        candidates=tuple(candidate.name for candidate in candidates),
        num_rows=len(of_rows),
        measures=(*loss_measures(losses), *task_measures(losses, rows.examples), accuracy),
        notes=(
            *rows.notes,
            f"{round(sum(of_rows)):,} tokens were to be told, in {len(of_rows):,} texts or pieces of texts.",
        ),
        answers=(),
    )
