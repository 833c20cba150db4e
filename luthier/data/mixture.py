"""Mixtures: how many rows of each source an epoch takes, and which.

A source m of n_m training rows counts as r_m = min(n_m, K_m), K_m its cap, and has the share

    p_m = r_m^(1/T) / Σ_k r_k^(1/T)        of an epoch of Σ_k r_k rows

as in T5 (Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 3.5.2) and FLAN (Wei et al. 2021,
https://arxiv.org/abs/2109.01652); T = 1 takes every row once. Weights stand in place of the r_m^(1/T). No source
gives more than its cap.

Each source is an endless row of passes over its rows, each pass in an order of its own; epoch e takes the rows from e q_m to
(e + 1) q_m of it, q_m being its number. So all rows of a source come equally often, whatever its share. What an epoch takes
follows from the seed and the epoch alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from luthier.data.sequences import taken
from luthier.data.settings import DataSource
from luthier.ops.draws import salt_of
from luthier.types import Example, IntArray

_SALT = salt_of("rows of a source")


@dataclass(frozen=True)
class Mixture:
    """The sources of a training set, whose rows stand one source after another.

    tasks: their names. sizes: how many rows each has. quotas: how many of them an epoch takes.
    """

    tasks: tuple[str, ...]
    sizes: tuple[int, ...]
    quotas: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        """Rows of an epoch."""
        return sum(self.quotas)

    def rows_of(self, seed: int, epoch: int) -> list[int]:
        """The rows that an epoch takes, as indices into all rows, in its order."""
        starts = np.cumsum([0, *self.sizes])
        chosen = [
            start + _passes(size, quota, seed, epoch, source)
            for source, (start, size, quota) in enumerate(zip(starts, self.sizes, self.quotas, strict=False))
        ]
        rows_R = np.concatenate(chosen)
        order: list[int] = rows_R[np.array(epoch_order(len(rows_R), seed, epoch), dtype=np.int64)].tolist()
        return order

    @property
    def note(self) -> str:
        """What an epoch takes, in words."""
        parts = [
            f"{task} {quota:,} ({100 * quota / self.num_rows:.0f} %; it has {size:,})"
            for task, size, quota in zip(self.tasks, self.sizes, self.quotas, strict=True)
        ]
        return f"Each epoch takes {self.num_rows:,} rows: {', '.join(parts)}."


def _passes(size: int, quota: int, seed: int, epoch: int, source: int) -> IntArray:
    """The rows of one source that an epoch takes."""
    if quota == 0:
        return np.zeros(0, dtype=np.int64)
    first, end = epoch * quota, (epoch + 1) * quota
    orders = [_pass(size, seed, number, source) for number in range(first // size, -(-end // size))]
    return np.concatenate(orders)[first % size : first % size + quota]


def _pass(size: int, seed: int, number: int, source: int) -> IntArray:
    key = np.array([seed % 2**64, (_SALT + 2**20 * source + number) % 2**64], dtype=np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(size), kind="stable").astype(np.int64)


def epoch_order(num_rows: int, seed: int, epoch: int) -> list[int]:
    """The order in which an epoch takes its rows."""
    # Sorting raw counter-based draws gives the same order in every version of numpy; its shuffles do not promise that.
    draws = np.random.Philox(key=np.array([seed % 2**64, epoch], dtype=np.uint64)).random_raw(num_rows)
    order: list[int] = np.argsort(draws, kind="stable").tolist()
    return order


def by_task(rows: Sequence[Example]) -> dict[str, Sequence[Example]]:
    """The rows of each task, the tasks in the order of their first rows; "" is that of rows without one."""
    at: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        at.setdefault(row.origin.task or "", []).append(index)
    return {task: rows if len(at) == 1 else taken(rows, places) for task, places in at.items()}


def mixture_of(
    tasks: Sequence[str], sources: Sequence[DataSource], sizes: Sequence[int], temperature: float
) -> Mixture:
    """What an epoch takes of sources with so many training rows; those without a row give none."""
    counts = [min(size, source.max_rows or size) for size, source in zip(sizes, sources, strict=True)]
    rates = [
        0.0 if count == 0 else source.weight or count ** (1 / temperature)
        for count, source in zip(counts, sources, strict=True)
    ]
    quotas = [
        min(quota, source.max_rows or quota)
        for quota, source in zip(_apportioned(sum(counts), rates), sources, strict=True)
    ]
    return Mixture(tuple(tasks), tuple(sizes), tuple(quotas))


def _apportioned(total: int, rates: Sequence[float]) -> list[int]:
    """A number in whole parts by rates: rounded down, and what is left goes to the largest remainders; none is 0 by rounding."""
    whole = sum(rates)
    exact = [total * rate / whole if whole else 0.0 for rate in rates]
    parts = [int(share + 1e-9) for share in exact]
    by_rest = sorted(range(len(rates)), key=lambda index: (parts[index] - exact[index], index))
    for index in by_rest[: total - sum(parts)]:
        parts[index] += 1
    return [max(part, 1) if rate > 0 else 0 for part, rate in zip(parts, rates, strict=True)]
