"""Examples → micro-batches that fit a budget of tokens, and micro-batches → tensors.

All of it is a pure function of lengths and order, so the plan of a step depends on the recipe and never on the machine's
load. For an encoder-decoder a row is a source and what is learned of it; both count.
Shape suffixes: B rows, T tokens of a row, S tokens of a source, N learned targets.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch

from luthier.errors import RecipeError
from luthier.ops.prefixes import common_prefix
from luthier.types import Batch, Example, IntArray, Layout, Segment, Sources, Targets

_LEAST_SAVED = 0.05  # share of a micro-batch's tokens below which a shared prefix costs more in attention than it saves

# ── which rows go together ──────────────────────────────────────────────────────────────────────────────────────────


def plan_micro_batches(
    lengths: Sequence[int],
    budget: int,
    workers: int,
    layout: Layout,
    sources: Sequence[int] | None = None,
    apart: Sequence[int] | None = None,
) -> list[list[int]]:
    """Which rows are computed together: lists of indices into `lengths`, each ascending, every index once.

    No micro-batch costs more than `budget` tokens, padding included. There are as few as need be, rounded up to a
    multiple of `workers` where there are rows enough, and near-equal in cost, so that all workers end together.
    sources: how many tokens of each length are a source, which is padded apart from the rest; None: none.
    apart: into how many padded rows of equal length each row is laid out; None: one.
    Raises: RecipeError, if one row alone is longer than the budget.
    """
    check_lengths(lengths, budget)
    if layout == "bucketed":
        return sorted(sorted(rows) for rows in _plan_buckets(_Sizes(lengths, sources, apart), budget, workers))
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    fewest = _best_fit(lengths, order, budget)
    number = min(len(lengths), workers * -(-len(fewest) // workers))
    plan = _spread(lengths, order, budget, number) or fewest
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


class _Sizes:
    """How long rows are in each of their streams, and what it costs to pad some of them to the longest in each."""

    def __init__(self, lengths: Sequence[int], sources: Sequence[int] | None, apart: Sequence[int] | None) -> None:
        sources = [0] * len(lengths) if sources is None else sources
        self.apart = [1] * len(lengths) if apart is None else apart
        self.of_row = [
            ((total - source) // count, source)
            for total, source, count in zip(lengths, sources, self.apart, strict=True)
        ]

    def order(self) -> list[int]:
        """The rows, longest first; of the same length, those with the longer source first."""
        return sorted(range(len(self.of_row)), key=lambda row: (-sum(self.of_row[row]), -self.of_row[row][1], row))

    def cost(self, rows: Sequence[int]) -> int:
        """Tokens of these rows together, padding included."""
        own, source = (max(self.of_row[row][stream] for row in rows) for stream in (0, 1))
        return sum(self.apart[row] for row in rows) * (own + source)

    def cut_where_full(self, budget: int) -> list[list[int]]:
        """Rows of near-equal length together, in bins that cost no more than the budget where a row alone does not."""
        bins: list[list[int]] = []
        longest, count = [0, 0], 0
        for row in self.order():
            wider = [max(pair) for pair in zip(longest, self.of_row[row], strict=True)]
            count += self.apart[row]
            if not bins or count * sum(wider) > budget:
                bins.append([])
                wider, count = list(self.of_row[row]), self.apart[row]
            bins[-1].append(row)
            longest = wider
        return bins


def _plan_buckets(sizes: _Sizes, budget: int, workers: int) -> list[list[int]]:
    """The rows over as many bins as `plan_micro_batches` says, cut so that the dearest costs as little as it can."""
    num_rows = len(sizes.of_row)
    number = min(num_rows, workers * -(-len(sizes.cut_where_full(budget)) // workers))
    low, high = max((sizes.cost([row]) for row in range(num_rows)), default=0), budget
    while low < high:
        middle = (low + high) // 2
        if len(sizes.cut_where_full(middle)) <= number:
            high = middle
        else:
            low = middle + 1
    bins = sizes.cut_where_full(low)
    while len(bins) < number:  # a worker would have nothing to do: halve the dearest bin that has two rows
        dearest = max((rows for rows in bins if len(rows) > 1), key=sizes.cost)
        bins.append(dearest[len(dearest) // 2 :])
        del dearest[len(dearest) // 2 :]
    return bins


# ── rows → tensors ──────────────────────────────────────────────────────────────────────────────────────────────────


def collate(examples: Sequence[Example], layout: Layout, pad_id: int, *, shares_prefix: bool = False) -> Batch:
    """The examples as one batch; both layouts hold the same targets in the same order.

    pad_id fills the padding of the bucketed layout; masked, it is never seen.
    shares_prefix: a beginning that all examples have in common, such as a system prompt, stands in a packed row once. A
    token of it belongs to the first example, so what is drawn by document must not be drawn then.
    Raises: RecipeError for an example whose parts share others in the bucketed layout.
    """
    if layout == "bucketed":
        batch = _bucketed(examples, pad_id)
    else:
        prefix = shared_prefix(examples) if shares_prefix else 0
        batch = _packed_behind(prefix, examples) if prefix else _packed(examples)
    tasks = tuple(example.origin.task for example in examples if example.origin.task is not None)
    return replace(batch, rows=tuple(example.document for example in examples), tasks=tasks)


def shared_prefix(examples: Sequence[Example]) -> int:
    """How many tokens all examples begin with and none learns to go on from; 0 if it does not pay to share them."""
    if len(examples) < 2 or any(len(e.parts) > 1 or not e.parts[0].causal for e in examples):
        return 0
    rows = [example.parts[0].tokens_T for example in examples]
    ends = (min([len(row) - 1, *example.source_N.tolist()]) for row, example in zip(rows, examples, strict=True))
    length = common_prefix(rows, min(ends))
    saved = length * (len(rows) - 1)
    return length if saved >= _LEAST_SAVED * sum(len(row) for row in rows) else 0


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
    return _row(tokens, positions, segments, documents, _targets(examples, _runs(examples, starts)))


def _packed_behind(prefix: int, examples: Sequence[Example]) -> Batch:
    """Examples of one part each behind the tokens that all begin with."""
    rows = [example.parts[0].tokens_T for example in examples]
    tokens = [rows[0][:prefix], *(row[prefix:] for row in rows)]
    positions = [np.arange(prefix), *(np.arange(prefix, len(row)) for row in rows)]
    ends = np.cumsum([len(part) for part in tokens]).tolist()
    segments = [Segment(0, prefix), *(Segment(*span, parent=0) for span in pairwise(ends))]
    documents = [examples[0].document, *(example.document for example in examples)]
    starts = [end - prefix for end in ends]  # where the example would begin, had it its prefix before it
    return _row(tokens, positions, segments, documents, _targets(examples, _runs(examples, starts)))


def _runs(examples: Sequence[Example], starts: Sequence[int]) -> list[IntArray]:
    """Of each example, where its tokens are, laid end to end from its start on."""
    pairs = zip(examples, starts, strict=False)
    return [start + np.arange(example.num_tokens, dtype=np.int64) for example, start in pairs]


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
    parts = [(example, part) for example in examples for part in example.parts]
    if any(part.parent is not None for _, part in parts):
        raise RecipeError(
            "Rows of several parts (a prompt shared by several answers) need packed batches, which this model's family does not allow.",
            "Choose an objective that learns one answer a row, or a model of another family.",
            field="model",
        )
    own = padded([part.tokens_T for _, part in parts], pad_id)
    read = [example.source_S for example in examples if example.source_S is not None]
    assert len(read) in (0, len(parts)), "every row of an encoder-decoder has a source, and no row of another model"
    return Batch(
        layout="bucketed",
        tokens_BT=own.tokens_BS,
        positions_BT=own.positions_BS,
        mask_BT=own.mask_BS,
        segments=tuple(
            replace(segment, causal=part.causal) for segment, (_, part) in zip(own.segments, parts, strict=True)
        ),
        documents=tuple(example.document for example, _ in parts),
        targets=_targets(examples, _places(examples, own.tokens_BS.shape[1])),
        sources=padded(read, pad_id) if read else None,
        types_BT=_types(examples, own.tokens_BS),
    )


def _places(examples: Sequence[Example], width: int) -> list[IntArray]:
    """Of each example, where its tokens are in padded rows of that width, one row for each part."""
    places: list[IntArray] = []
    row = 0
    for example in examples:
        starts = range(row * width, (row + len(example.parts)) * width, width)
        runs = (start + np.arange(len(part.tokens_T)) for start, part in zip(starts, example.parts, strict=True))
        places.append(np.concatenate(list(runs)))
        row += len(example.parts)
    return places


def _types(examples: Sequence[Example], tokens_BT: torch.Tensor) -> torch.Tensor | None:
    """Which text each token of padded rows is of; None where no row has two."""
    if all(example.types_P is None for example in examples):
        return None
    types_BT = torch.zeros_like(tokens_BT)
    for example, at_P in zip(examples, _places(examples, tokens_BT.shape[1]), strict=True):
        if example.types_P is not None:
            types_BT.view(-1)[at_P] = torch.from_numpy(example.types_P)
    return types_BT


def padded(rows: Sequence[IntArray], pad_id: int) -> Sources:
    """Rows of tokens side by side, padded on the right."""
    lengths = [len(row) for row in rows]
    width = max(lengths)
    tokens_BS = np.full((len(rows), width), pad_id, dtype=np.int64)
    for index, row in enumerate(rows):
        tokens_BS[index, : len(row)] = row
    positions_S = np.arange(width, dtype=np.int64)
    return Sources(
        tokens_BS=torch.from_numpy(tokens_BS),
        positions_BS=torch.from_numpy(np.tile(positions_S, (len(rows), 1))),
        mask_BS=torch.from_numpy(positions_S[None] < np.array(lengths)[:, None]),
        segments=tuple(Segment(row * width, row * width + length) for row, length in enumerate(lengths)),
    )


def targets_of(example: Example) -> Targets:
    """An example's targets, its tokens counted from its own first."""
    return _targets([example], [np.arange(example.num_part_tokens, dtype=np.int64)])


def _targets(examples: Sequence[Example], places: Sequence[IntArray]) -> Targets:
    """The targets of all examples in order; places: where in the batch each example's tokens are."""
    sources = [at_P[example.source_N] for example, at_P in zip(examples, places, strict=True)]
    rows = [np.full(example.num_learned, row, dtype=np.int64) for row, example in enumerate(examples)]
    values = [example.value_N for example in examples if example.value_N is not None]
    assert len(values) in (0, len(examples)), "every row has numbers to be learned, or none has"
    names = examples[0].given
    assert all(example.given.keys() == names.keys() for example in examples), "all rows come with the same numbers"
    return Targets(
        source_N=torch.from_numpy(np.concatenate(sources)),
        token_N=torch.from_numpy(np.concatenate([example.token_N for example in examples])),
        weight_N=torch.from_numpy(np.concatenate([example.weight_N for example in examples])),
        sample_N=torch.from_numpy(np.concatenate([example.sample_N for example in examples])),
        row_N=torch.from_numpy(np.concatenate(rows)),
        value_N=torch.from_numpy(np.concatenate(values)) if values else None,
        given={name: torch.from_numpy(np.concatenate([each.given[name] for each in examples])) for name in names},
    )
