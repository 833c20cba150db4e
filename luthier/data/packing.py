"""Examples → micro-batches that fit a budget of tokens, and micro-batches → tensors.

All of it is a pure function of lengths and order, so the plan of a step depends on the recipe and never on the machine's
load. Shape suffixes: B rows, T tokens of a row, N learned targets.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from luthier.errors import RecipeError
from luthier.types import Batch, Example, IntArray, Layout, Segment, Targets

_LEAST_SAVED = 0.05  # share of a micro-batch's tokens below which a shared prefix costs more in attention than it saves

# ── which rows go together ──────────────────────────────────────────────────────────────────────────────────────────


def plan_micro_batches(lengths: Sequence[int], budget: int, workers: int, layout: Layout) -> list[list[int]]:
    """Which rows are computed together: lists of indices into `lengths`, each ascending, every index once.

    No micro-batch costs more than `budget` tokens, padding included. There are as few as need be, rounded up to a
    multiple of `workers` where there are rows enough, and near-equal in cost, so that all workers end together.
    Raises: RecipeError, if one row alone is longer than the budget.
    """
    check_lengths(lengths, budget)
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    fewest = _best_fit(lengths, order, budget) if layout == "packed" else _cut_where_full(lengths, order, budget)
    number = min(len(lengths), workers * -(-len(fewest) // workers))
    spread = _spread if layout == "packed" else _spread_buckets
    plan = spread(lengths, order, budget, number) or fewest
    return sorted(sorted(rows) for rows in plan)


def check_lengths(lengths: Sequence[int], budget: int) -> None:
    """Raises: RecipeError, if one row alone is longer than the budget."""
    longest = max(lengths, default=0)
    if longest > budget:
        raise RecipeError(
            f"A row has {longest} tokens, but a micro-batch may hold only {budget}.",
            f"Raise training.tokens_per_micro_batch to {longest} or more, or lower data.max_length.",
            field="training.tokens_per_micro_batch",
        )


def assign_workers(costs: Sequence[int], workers: int) -> list[int]:
    """Which worker computes each micro-batch: the dearest first, each to the worker with least to do."""
    loads = [0] * workers
    worker_of = [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        worker_of[index] = loads.index(min(loads))
        loads[worker_of[index]] += costs[index]
    return worker_of


def _best_fit(lengths: Sequence[int], order: Sequence[int], budget: int) -> list[list[int]]:
    """Best fit decreasing: each row into the fullest bin that still has room for it."""
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens still free, bin), ascending
    for row in order:
        place = bisect_left(room, (lengths[row], 0))
        if place < len(room):
            free, chosen = room.pop(place)
        else:
            free, chosen = budget, len(bins)
            bins.append([])
        bins[chosen].append(row)
        insort(room, (free - lengths[row], chosen))
    return bins


def _spread(lengths: Sequence[int], order: Sequence[int], budget: int, number: int) -> list[list[int]] | None:
    """The rows over `number` bins, longest first, each into the emptiest; None if one of them finds no room."""
    room = [(-budget, chosen) for chosen in range(number)]  # (minus the tokens still free, bin), emptiest first
    bins: list[list[int]] = [[] for _ in range(number)]
    for row in order:
        minus_free, chosen = room[0]
        if lengths[row] > -minus_free:
            return None
        del room[0]
        bins[chosen].append(row)
        insort(room, (minus_free + lengths[row], chosen))
    return [rows for rows in bins if rows]


def _cut_where_full(lengths: Sequence[int], order: Sequence[int], budget: int) -> list[list[int]]:
    """Rows of near-equal length together; a bin costs its number of rows times its longest row, padding included."""
    bins: list[list[int]] = []
    for row in order:  # the first row of a bin is its longest
        if not bins or (len(bins[-1]) + 1) * lengths[bins[-1][0]] > budget:
            bins.append([])
        bins[-1].append(row)
    return bins


def _spread_buckets(lengths: Sequence[int], order: Sequence[int], budget: int, number: int) -> list[list[int]]:
    """The rows over `number` bins, cut so that the dearest bin costs as little as it can."""
    low, high = lengths[order[0]] if order else 0, budget
    while low < high:
        middle = (low + high) // 2
        if len(_cut_where_full(lengths, order, middle)) <= number:
            high = middle
        else:
            low = middle + 1
    bins = _cut_where_full(lengths, order, low)
    while len(bins) < number:  # a worker would have nothing to do: halve the dearest bin that has two rows
        dearest = max((rows for rows in bins if len(rows) > 1), key=lambda rows: len(rows) * lengths[rows[0]])
        bins.append(dearest[len(dearest) // 2 :])
        del dearest[len(dearest) // 2 :]
    return bins


# ── rows → tensors ──────────────────────────────────────────────────────────────────────────────────────────────────


def collate(examples: Sequence[Example], layout: Layout, pad_id: int, *, shares_prefix: bool = False) -> Batch:
    """The examples as one batch; both layouts hold the same targets in the same order.

    pad_id fills the padding of the bucketed layout; masked, it is never seen.
    shares_prefix: a beginning that all examples have in common, such as a system prompt, stands in a packed row once. A
    token of it belongs to the first example, so what is drawn by document must not be drawn then.
    Raises: RecipeError for an example of several parts in the bucketed layout.
    """
    if layout == "bucketed":
        return _bucketed(examples, pad_id)
    prefix = shared_prefix(examples) if shares_prefix else 0
    return _packed_behind(prefix, examples) if prefix else _packed(examples)


def shared_prefix(examples: Sequence[Example]) -> int:
    """How many tokens all examples begin with and none learns to go on from; 0 if it does not pay to share them."""
    if len(examples) < 2 or any(len(e.parts) > 1 or not e.parts[0].causal for e in examples):
        return 0
    rows = [example.parts[0].tokens_T for example in examples]
    ends = (min([len(row) - 1, *example.source_N.tolist()]) for row, example in zip(rows, examples, strict=True))
    length = common_prefix(rows, min(ends))
    saved = length * (len(rows) - 1)
    return length if saved >= _LEAST_SAVED * sum(len(row) for row in rows) else 0


def common_prefix(rows: Sequence[IntArray], most: int) -> int:
    """How many tokens the rows begin with in common, at most `most`."""
    for row in rows[1:]:
        (differing,) = np.nonzero(row[:most] != rows[0][:most])
        most = int(differing[0]) if len(differing) else most
    return most


def _packed(examples: Sequence[Example]) -> Batch:
    tokens: list[IntArray] = []
    positions: list[IntArray] = []
    segments: list[Segment] = []
    documents: list[int] = []
    start = 0
    for example in examples:
        first_segment = len(segments)
        ends: list[int] = []  # the position after each part's last token
        for part in example.parts:
            parent = None if part.parent is None else first_segment + part.parent
            begins_at = 0 if part.parent is None else ends[part.parent]
            length = len(part.tokens_T)
            segments.append(Segment(start, start + length, parent, part.causal))
            documents.append(example.document)
            tokens.append(part.tokens_T)
            positions.append(np.arange(begins_at, begins_at + length, dtype=np.int64))
            ends.append(begins_at + length)
            start += length
    starts = [0, *np.cumsum([example.num_tokens for example in examples]).tolist()]
    return _row(tokens, positions, segments, documents, _targets(examples, starts))


def _packed_behind(prefix: int, examples: Sequence[Example]) -> Batch:
    """Examples of one part each behind the tokens that all begin with."""
    rows = [example.parts[0].tokens_T for example in examples]
    tokens = [rows[0][:prefix], *(row[prefix:] for row in rows)]
    positions = [np.arange(prefix), *(np.arange(prefix, len(row)) for row in rows)]
    ends = np.cumsum([len(part) for part in tokens]).tolist()
    segments = [Segment(0, prefix), *(Segment(*span, parent=0) for span in pairwise(ends))]
    documents = [examples[0].document, *(example.document for example in examples)]
    starts = [end - prefix for end in ends]  # where the example would begin, had it its prefix before it
    return _row(tokens, positions, segments, documents, _targets(examples, starts))


def _row(
    tokens: Sequence[IntArray],
    positions: Sequence[IntArray],
    segments: Sequence[Segment],
    documents: Sequence[int],
    targets: Targets,
) -> Batch:
    return Batch(
        layout="packed",
        tokens_BT=torch.from_numpy(np.concatenate(tokens))[None],
        positions_BT=torch.from_numpy(np.concatenate(positions))[None],
        mask_BT=None,
        segments=tuple(segments),
        documents=tuple(documents),
        targets=targets,
    )


def _bucketed(examples: Sequence[Example], pad_id: int) -> Batch:
    if any(len(example.parts) != 1 for example in examples):
        raise RecipeError(
            "Rows of several parts (a prompt shared by several answers) need packed batches, which this model's family does not allow.",
            "Choose an objective that learns one answer a row, or a model of another family.",
            field="model",
        )
    lengths = [example.num_tokens for example in examples]
    width = max(lengths)
    tokens_BT = np.full((len(examples), width), pad_id, dtype=np.int64)
    for row, example in enumerate(examples):
        tokens_BT[row, : lengths[row]] = example.parts[0].tokens_T
    types_BT = None if all(example.types_P is None for example in examples) else np.zeros_like(tokens_BT)
    for row, example in enumerate(examples):
        if types_BT is not None and example.types_P is not None:
            types_BT[row, : lengths[row]] = example.types_P
    positions_T = np.arange(width, dtype=np.int64)
    starts = [row * width for row in range(len(examples))]
    return Batch(
        layout="bucketed",
        tokens_BT=torch.from_numpy(tokens_BT),
        positions_BT=torch.from_numpy(np.tile(positions_T, (len(examples), 1))),
        mask_BT=torch.from_numpy(positions_T[None] < np.array(lengths)[:, None]),
        segments=tuple(
            Segment(start, start + length, None, example.parts[0].causal)
            for start, length, example in zip(starts, lengths, examples, strict=True)
        ),
        documents=tuple(example.document for example in examples),
        targets=_targets(examples, starts),
        types_BT=None if types_BT is None else torch.from_numpy(types_BT),
    )


def _targets(examples: Sequence[Example], starts: Sequence[int]) -> Targets:
    """The targets of all examples in order, their sources counted from where each example begins in the batch."""
    sources = [example.source_N + start for example, start in zip(examples, starts, strict=False)]
    return Targets(
        source_N=torch.from_numpy(np.concatenate(sources)),
        token_N=torch.from_numpy(np.concatenate([example.token_N for example in examples])),
        weight_N=torch.from_numpy(np.concatenate([example.weight_N for example in examples])),
        sample_N=torch.from_numpy(np.concatenate([example.sample_N for example in examples])),
    )
