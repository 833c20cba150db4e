"""The rows of a run in the order and the steps that training takes them.

The order of an epoch follows from the seed and the epoch alone. What has been taken is three numbers, so that a resumed
run goes on exactly where it stood.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from luthier.data.drawn import Vary
from luthier.data.facts import facts_of, laid_out
from luthier.data.mixture import Mixture, epoch_order
from luthier.data.packing import assign_workers, check_lengths, collate, plan_micro_batches
from luthier.errors import DataError, RunMismatch
from luthier.types import Batch, Example, IntArray, Layout


@dataclass(frozen=True)
class Step:
    """What one optimizer step computes.

    number: counted from 1. worker_of: for each micro-batch, who computes it. learned_weight: the sum of all targets'
    weights, which the loss is divided by. real_tokens: input tokens, neither padding nor placeholders. rows: indices into
    the examples, in the order of the epoch. epoch: passes over the rows that are complete once this step is done.
    measured: what is to be written down of it beside the loss, by name. ends_run: whether the run should stop after it.
    """

    number: int
    micro_batches: tuple[Batch, ...]
    worker_of: tuple[int, ...]
    learned_weight: float
    learned_tokens: int
    real_tokens: int
    rows: tuple[int, ...]
    epoch: float
    measured: Mapping[str, float] = field(default_factory=dict)
    ends_run: bool = False


class Steps(Iterator[Step]):
    """What the loop takes its steps from; `num_steps` in all."""

    num_steps: int

    @abstractmethod
    def halve(self) -> int | None:
        """From now on hold half as many tokens in a micro-batch, or as many as the longest row has; None if no fewer can be."""

    @abstractmethod
    def again(self, step: Step) -> Step:
        """The same step in micro-batches of the size that now holds."""

    def heed(self, measured: Mapping[str, float]) -> Mapping[str, float]:
        """Take notice of what the step at hand measured, before it changes the weights; what is to be written down beside it.

        Raises: RunMismatch, if the step must not be taken.
        """
        return {}

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What has been taken, as small JSON."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`. Raises: RunMismatch for a place that this run does not have."""


class StepBatches(Steps):
    """The steps of a run, one after another; `num_steps` in all.

    The last step of an epoch takes the rows that are left, so that every row comes exactly once an epoch. An epoch that
    counts only in part (`epochs` is 2.5) ends after that part of its rows.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        rows_per_step: int | None,
        tokens_per_step: int | None,
        budget: int,
        workers: int,
        layout: Layout,
        pad_id: int,
        seed: int,
        shares_prefix: bool = False,
        epochs: float = 1.0,
        steps: int | None = None,
        vary: Vary | None = None,
        longest: int | None = None,
        mixture: Mixture | None = None,
    ) -> None:
        """Stand before the first step.

        rows_per_step, tokens_per_step: one of them. A step takes so many rows, or rows until the next would pass so many
        tokens, at least one; placeholders do not count, so that a step holds the same rows whatever the method.
        budget: most tokens in a micro-batch, padding and placeholders included.
        shares_prefix: as `collate` takes it.
        steps: how long the run is; unset, `epochs`.
        vary: what an example is in each epoch; None: always the same. longest: then, the most tokens that one may come to.
        mixture: which of the examples each epoch takes; None: all of them, once.

        Raises: DataError without examples; RecipeError for an example longer than the budget.
        """
        if not examples:
            raise DataError("There is no row to train on.", "Give at least one training row.")
        assert (rows_per_step is None) != (tokens_per_step is None), "a step is counted in rows or in tokens"
        self._examples = examples
        self._vary = vary
        facts_R = facts_of(examples)
        self._lengths: IntArray = np.ascontiguousarray(facts_R["real"])
        # now, not at the step that such a row would come in
        self._longest = longest or int(laid_out(facts_R, layout).max())
        check_lengths([self._longest], budget)
        self._rows_per_step = rows_per_step
        self._tokens_per_step = tokens_per_step
        self._budget = budget
        self._workers = workers
        self._layout = layout
        self._pad_id = pad_id
        self._shares_prefix = shares_prefix
        self._seed = seed
        self._mixture = mixture
        self._per_epoch = len(examples) if mixture is None else mixture.num_rows
        self._whole_epochs: int | None = None  # None: as many as the steps need
        self._last_rows = 0
        if steps is None:
            self._whole_epochs, self._last_rows = _in_rows(epochs, self._per_epoch)
        self._epoch = 0
        self._position = 0  # rows of this epoch already taken
        self._order = self._order_of(0)
        self._step = 0
        self.num_steps = steps if steps is not None else self._count_steps()

    def __next__(self) -> Step:
        if self._step >= self.num_steps:
            raise StopIteration
        if self._position >= self._rows_of_epoch(self._epoch):
            self._go_to(self._epoch + 1, 0)
        end = self._step_end(self._order, self._position, self._rows_of_epoch(self._epoch))
        rows = tuple(self._order[self._position : end])
        self._position = end
        self._step += 1
        examples = self._drawn(rows)
        micro_batches, worker_of = self._laid_out(examples)
        return Step(
            number=self._step,
            micro_batches=micro_batches,
            worker_of=worker_of,
            learned_weight=float(sum(float(example.weight_N.sum(dtype=np.float64)) for example in examples)),
            learned_tokens=sum(example.num_learned for example in examples),
            real_tokens=sum(example.num_real_tokens for example in examples),
            rows=rows,
            epoch=self._epoch + end / self._per_epoch,
        )

    def _drawn(self, rows: Sequence[int], epoch: int | None = None) -> list[Example]:
        """The examples of these rows in an epoch; unset, the one that is on."""
        epoch = self._epoch if epoch is None else epoch
        examples = [self._examples[row] for row in rows]
        return examples if self._vary is None else [self._vary(example, epoch) for example in examples]

    def _laid_out(self, examples: Sequence[Example]) -> tuple[tuple[Batch, ...], tuple[int, ...]]:
        """A step's micro-batches within the budget, and who computes each."""
        batches = cut_batches(examples, self._budget, self._workers, self._layout, self._pad_id, self._shares_prefix)
        return tuple(batches), tuple(assign_workers([batch.cost for batch in batches], self._workers))

    @property
    def most_micro_batches(self) -> int:
        """The most micro-batches that a step so far from the first epoch's order needs."""
        count, position, end = 0, 0, self._rows_of_epoch(0)
        while position < end:
            after = self._step_end(self._order, position, end)
            count = max(count, len(self._laid_out(self._drawn(self._order[position:after], 0))[0]))
            position = after
        return count

    def heaviest(self) -> Batch:
        """The micro-batch of the first epoch that costs most; only those that may be it are laid out."""
        candidates: list[tuple[int, list[int]]] = []
        position, end = 0, self._rows_of_epoch(0)
        facts_R = facts_of(self._examples if self._vary is None else self._drawn(range(len(self._examples)), 0))
        sizes_R = laid_out(facts_R, self._layout)
        while position < end:
            after = self._step_end(self._order, position, end)
            rows = self._order[position:after]
            lengths, sources, apart = (facts[rows].tolist() for facts in (sizes_R, facts_R["source"], facts_R["parts"]))
            for plan in plan_micro_batches(lengths, self._budget, self._workers, self._layout, sources, apart):
                candidates.append((_cost(plan, lengths, sources, apart, self._layout), [rows[i] for i in plan]))
            position = after
        candidates.sort(key=lambda candidate: -candidate[0])
        heaviest: Batch | None = None
        for cost, rows in candidates:  # a beginning that is shared makes a batch cheaper, never dearer
            if heaviest is not None and heaviest.cost >= cost:
                break
            batch = collate(self._drawn(rows, 0), self._layout, self._pad_id, shares_prefix=self._shares_prefix)
            heaviest = batch if heaviest is None or batch.cost > heaviest.cost else heaviest
        assert heaviest is not None, "a run has a row"
        return heaviest

    @property
    def tokens_of_epoch(self) -> int:
        """Tokens that the first epoch computes, without padding."""
        return int(facts_of(self._examples)["tokens"][self._order].sum())

    def halve(self) -> int | None:
        """See the base class."""
        smaller = max(self._budget // 2, self._longest)
        if smaller >= self._budget:
            return None
        self._budget = smaller
        return smaller

    def again(self, step: Step) -> Step:
        """See the base class."""
        micro_batches, worker_of = self._laid_out(self._drawn(step.rows))
        return replace(step, micro_batches=micro_batches, worker_of=worker_of)

    def state_dict(self) -> dict[str, int]:
        """What has been taken, and the size of micro-batches, which a shortage of memory may have lessened."""
        return {"epoch": self._epoch, "position": self._position, "step": self._step, "budget": self._budget}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See the base class."""
        epoch, position, step = int(state["epoch"]), int(state["position"]), int(state["step"])
        if not (0 <= position <= self._per_epoch and 0 <= step <= self.num_steps and epoch >= 0):
            raise RunMismatch(
                f"The checkpoint stands at row {position} of epoch {epoch}, step {step}, but this run has "
                f"{self._per_epoch} rows an epoch and {self.num_steps} steps.",
                "Resume with the data and the recipe that the run began with.",
            )
        self._go_to(epoch, position)
        self._step = step
        self._budget = min(self._budget, int(state.get("budget", self._budget)))

    def _go_to(self, epoch: int, position: int) -> None:
        self._epoch, self._position = epoch, position
        self._order = self._order_of(epoch)

    def _order_of(self, epoch: int) -> list[int]:
        """The rows of an epoch, in its order."""
        if self._mixture is not None:
            return self._mixture.rows_of(self._seed, epoch)
        return epoch_order(len(self._examples), self._seed, epoch)

    def _rows_of_epoch(self, epoch: int) -> int:
        return self._last_rows if epoch == self._whole_epochs else self._per_epoch

    def _step_end(self, order: Sequence[int], position: int, num_rows: int) -> int:
        """The position in the epoch after the step that begins at `position`."""
        if self._rows_per_step is not None:
            return min(position + self._rows_per_step, num_rows)
        assert self._tokens_per_step is not None
        end, tokens = position + 1, int(self._lengths[order[position]])
        while end < num_rows and tokens + int(self._lengths[order[end]]) <= self._tokens_per_step:
            tokens += int(self._lengths[order[end]])
            end += 1
        return end

    def _count_steps(self) -> int:
        assert self._whole_epochs is not None
        if self._rows_per_step is not None:  # every whole epoch has as many
            per_epoch = -(-self._per_epoch // self._rows_per_step)
            return self._whole_epochs * per_epoch + -(-self._last_rows // self._rows_per_step)
        count = 0
        for epoch in range(self._whole_epochs + (self._last_rows > 0)):
            order = self._order_of(epoch)
            position = 0
            while position < self._rows_of_epoch(epoch):
                position = self._step_end(order, position, self._rows_of_epoch(epoch))
                count += 1
        return count


def evaluation_batches(
    examples: Sequence[Example],
    budget: int,
    workers: int,
    layout: Layout,
    pad_id: int,
    *,
    shares_prefix: bool = False,
) -> list[Batch]:
    """All examples once as batches within the budget, in an order that never changes; none without examples."""
    return cut_batches(examples, budget, workers, layout, pad_id, shares_prefix)


def cut_batches(
    examples: Sequence[Example], budget: int, workers: int, layout: Layout, pad_id: int, shares_prefix: bool
) -> list[Batch]:
    """Micro-batches within the budget for so many workers, all examples once; `shares_prefix` as `collate` takes it."""
    facts_R = facts_of(examples)
    lengths = laid_out(facts_R, layout).tolist()
    sources, apart = facts_R["source"].tolist(), facts_R["parts"].tolist()
    plan = plan_micro_batches(lengths, budget, workers, layout, sources, apart)
    return [collate([examples[i] for i in rows], layout, pad_id, shares_prefix=shares_prefix) for rows in plan]


def _cost(
    rows: Sequence[int], lengths: Sequence[int], sources: Sequence[int], apart: Sequence[int], layout: Layout
) -> int:
    """Tokens of a micro-batch of these rows, if they share no beginning."""
    if layout == "packed":
        return sum(lengths[row] for row in rows)
    own = max((lengths[row] - sources[row]) // apart[row] for row in rows)
    return sum(apart[row] for row in rows) * (own + max(sources[row] for row in rows))


def _in_rows(epochs: float, num_rows: int) -> tuple[int, int]:
    """Whole epochs, and the rows of the part of an epoch that comes after them."""
    whole = math.floor(epochs)
    part = math.ceil(round((epochs - whole) * num_rows, 6))  # 0.1 of 30 rows is 3, not 4, whatever 0.1 is in binary
    part = max(part, 1 if whole == 0 else 0)
    return (whole, part) if part < num_rows else (whole + 1, 0)
