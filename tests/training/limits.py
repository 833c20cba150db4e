"""Runs under a limit of memory, for a process of their own: what another run left in its heap would count too."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from models.rows import random_rows
from training.runs import Run, same_bits

from luthier.training.checkpoint import Checkpoint
from luthier.training.memory import HighWater, give_back, peak_memory_bytes
from luthier.training.settings import TrainingSettings

CPU = torch.device("cpu")
LONG = 60
ROWS = 96
WHOLE = LONG * ROWS
"""Tokens of a step of one micro-batch, which takes about 10 MB more than two of half the size."""


@dataclass
class Limited:
    """What a run without a limit, one under a limit that halves reach, and this one resumed have shown."""

    spared: int
    """Bytes that micro-batches of half the size need less."""
    losses_of_free: list[float]
    losses: list[float]
    kept_budget: int
    said: list[str] = field(default_factory=list)
    said_by_resumed: list[str] = field(default_factory=list)
    resumed_is_same: bool = False


def wide_run(budget: int, recomputes: bool, limit_gb: float | None = None, steps: int = 2) -> Run:
    """Steps of many rows, in micro-batches of so many tokens."""
    give_back(CPU)
    settings = TrainingSettings(memory_limit_gb=limit_gb)
    rows = random_rows([LONG] * ROWS)
    run = Run(rows=rows, steps=steps, rows_per_step=ROWS, budget=budget, settings=settings, checkpoint_every=1)
    if recomputes:
        run.model.checkpoint_layers()
    return run


def most_held(run: Run) -> int:
    """The most bytes that the process holds while a run goes."""
    HighWater(CPU, limit_gb=1e-6).begin()
    run.go()
    return peak_memory_bytes(CPU)


def limited(recomputes: bool) -> Limited:
    """A limit half-way between what the whole needs and what halves need, and what comes of it."""
    most_held(wide_run(WHOLE, recomputes, steps=1))  # what is read and made once
    free, half = wide_run(WHOLE, recomputes), wide_run(WHOLE // 2, recomputes, steps=1)
    most, most_of_half = most_held(free), most_held(half)
    limit_gb = (most + most_of_half) / 2 / 1e9
    run = wide_run(WHOLE, recomputes, limit_gb)
    seen = Limited(most - most_of_half, _losses(free), [], 0)
    run.announce = seen.said.append
    run.go()
    seen.losses = _losses(run)
    first = run.saved[0]
    seen.kept_budget = first.state["batches"]["budget"]
    again = wide_run(WHOLE, recomputes, limit_gb)
    again.announce = seen.said_by_resumed.append
    again.go(Checkpoint(**vars(first)))
    seen.resumed_is_same = same_bits(again.weights(), run.weights())
    return seen


def _losses(run: Run) -> list[float]:
    return [metrics["loss"] for metrics in run.metrics]
