"""How well a model places texts: whether the nearest of all held-out texts is the one that means the same.

Each row's anchor is compared with the positives of all rows, each text counted once. The rank of the right one is 1 and
how many others are as near or nearer; other positives of the same anchor, and the anchor itself, are no others.
Accuracy@1 is the share of rows with rank 1, MRR the mean of 1 / rank. Base against tuned, on the same rows.
Shapes: R rows, M texts of all rows, U different positives, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.evaluation.candidates import Candidate, comparisons
from luthier.evaluation.intervals import bootstrap_mean, wilson
from luthier.evaluation.loss_by_row import mean_loss
from luthier.evaluation.measure import Measure
from luthier.evaluation.rows import Rows
from luthier.evaluation.verdict import Answered, Evaluation
from luthier.models.language_model import LanguageModel
from luthier.objectives import Embedding
from luthier.objectives.contract import Whole
from luthier.objectives.embedding import ANCHOR, POSITIVE, info_nce_of_each
from luthier.prediction.passes import Passes, check_fits, said_of_each, vectors
from luthier.types import Example, Similar


@dataclass(frozen=True)
class Retrieved:
    """What one candidate makes of the rows: each row's loss (nats), the rank of its positive, and the nearest text."""

    losses: list[float]
    ranks: list[int]
    nearest: list[str]


def evaluate_embedding(
    candidates: Sequence[Candidate], rows: Rows, objective: Embedding, passes: Passes, limit: int | None = None
) -> Evaluation:
    """All candidates on the same rows: loss, accuracy@1 and MRR; the first is what the others are compared with.

    limit: use only the first so many rows. Raises: DataError, if there are no rows, or one is beyond a model's context.
    """
    rows = rows.first(limit)
    records = [record for record, _ in rows.records if isinstance(record, Similar)]
    found = []
    for candidate in candidates:
        check_fits(candidate.model, candidate.adapter, rows.examples)
        task = f"{candidate.name}: vectors"
        whole = vectors_of(candidate.model, candidate.adapter, rows.examples, objective, passes, task)
        found.append(retrieved(whole, records, objective.temperature))
    num_texts = len({record.positive for record in records})
    return Evaluation(
        candidates=tuple(candidate.name for candidate in candidates),
        num_rows=len(records),
        measures=retrieval_measures(found),
        notes=(*rows.notes, f"Each text was compared with the {num_texts} different positives of these rows."),
        answers=tuple(
            Answered(origin, record.anchor, record.positive, tuple(each.nearest[row] for each in found))
            for row, (record, (_, origin)) in enumerate(zip(records, rows.records, strict=True))
        ),
    )


def vectors_of(
    model: LanguageModel,
    adapter: str | None,
    examples: Sequence[Example],
    objective: Embedding,
    passes: Passes,
    task: str,
) -> Whole:
    """The vectors of all texts of all rows."""
    said = said_of_each(model, adapter, examples, vectors(objective), passes, task)
    counts = torch.tensor([len(vector_MD) for vector_MD in said])
    return Whole(
        torch.cat(said),
        torch.arange(len(said)).repeat_interleave(counts),
        torch.cat([torch.arange(count) for count in counts.tolist()]),
    )


def retrieved(whole: Whole, records: Sequence[Similar], temperature: float) -> Retrieved:
    """What the vectors of rows come to."""
    texts = list(dict.fromkeys(record.positive for record in records))
    index_of = {text: index for index, text in enumerate(texts)}
    own_R = torch.tensor([index_of[record.positive] for record in records])
    first_U = torch.tensor([own_R.tolist().index(index) for index in range(len(texts))])
    vector_UD = whole.vector_MD[whole.sample_M == POSITIVE][first_U]
    near_RU = whole.vector_MD[whole.sample_M == ANCHOR] @ vector_UD.T
    own_R1 = near_RU.gather(1, own_R[:, None])
    near_RU = near_RU.masked_fill(_no_others(records, index_of), -torch.inf)
    ranks = 1 + (near_RU >= own_R1).sum(1)
    nearest_R = torch.where(ranks == 1, own_R, near_RU.argmax(1))
    return Retrieved(
        info_nce_of_each(whole, temperature).double().tolist(),
        ranks.tolist(),
        [texts[index] for index in nearest_R.tolist()],
    )


def _no_others(records: Sequence[Similar], index_of: dict[str, int]) -> Tensor:
    """Which texts a row's own must not be compared with: itself, the anchor's other positives, and the anchor, (R, U)."""
    positives: dict[str, set[int]] = {}
    for record in records:
        positives.setdefault(record.anchor, set()).add(index_of[record.positive])
    is_no_other_RU = torch.zeros(len(records), len(index_of), dtype=torch.bool)
    for row, record in enumerate(records):
        is_no_other_RU[row, sorted(positives[record.anchor])] = True
        if record.anchor in index_of:
            is_no_other_RU[row, index_of[record.anchor]] = True
    return is_no_other_RU


def retrieval_measures(found: Sequence[Retrieved]) -> tuple[Measure, ...]:
    """Loss (nats a row), accuracy@1 and MRR of each candidate, each later one against the first."""
    num_rows = len(found[0].ranks)
    losses = [each.losses for each in found]
    first = [[float(rank == 1) for rank in each.ranks] for each in found]
    reciprocal = [[1 / rank for rank in each.ranks] for each in found]
    return (
        mean_loss(losses),
        Measure(
            "accuracy@1", True, num_rows, tuple(wilson(round(sum(f)), num_rows) for f in first), comparisons(first)
        ),
        Measure("MRR", True, num_rows, tuple(bootstrap_mean(r) for r in reciprocal), comparisons(reciprocal)),
    )
