"""Runs of the loop over tiny models, everything that they say kept in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from models.rows import random_rows
from models.tiny import tiny_model
from torch import Tensor

from luthier.data.batches import StepBatches
from luthier.methods import LoRA, Method
from luthier.objectives import SFT
from luthier.ops.workers import Workers
from luthier.training.checkpoint import Checkpoint
from luthier.training.loop import HeldOut, Outside, Plan, train
from luthier.training.progress import Progress
from luthier.training.settings import TrainingSettings
from luthier.types import Example

LENGTHS = (12, 5, 9, 7, 12, 3, 10, 8, 6, 11)


@dataclass
class Run:
    """One run of the loop over a tiny model, everything that it says kept in memory."""

    name: str = "llama"
    method: Method = field(default_factory=lambda: LoRA(rank=2, dropout=0.2))
    rows: list[Example] = field(default_factory=lambda: random_rows(LENGTHS))
    steps: int = 5
    rows_per_step: int = 4
    budget: int = 16
    workers: int = 1
    peak_lr: float = 0.01
    evaluate_every: int = 2
    checkpoint_every: int = 100
    settings: TrainingSettings = field(default_factory=TrainingSettings)
    evaluate: Callable[[Run], float] | None = None
    on_step: Callable[[Run, dict[str, Any]], None] | None = None
    autocast: torch.dtype | None = None
    worst_start: float | None = None
    announce: Callable[[str], None] = lambda sentence: None
    metrics: list[dict[str, Any]] = field(default_factory=list)
    saved: list[Checkpoint] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = tiny_model(self.name)
        self.attachment = self.method.attach(self.model, "default", seed=1)

    def go(self, resume_from: Checkpoint | None = None) -> Progress:
        """Train to the end."""
        batches = StepBatches(
            self.rows, rows_per_step=self.rows_per_step, tokens_per_step=None, budget=self.budget, workers=self.workers,
            layout=self.model.layout, pad_id=0, seed=3, steps=self.steps,
        )  # fmt: skip
        plan = Plan(
            self.settings, 3, self.steps, self.peak_lr, self.evaluate_every, self.checkpoint_every, self.autocast,
            self.worst_start,
        )  # fmt: skip
        evaluate = None if self.evaluate is None else lambda: HeldOut(self.evaluate(self))  # type: ignore[misc]
        outside = Outside(evaluate, self.saved.append, self.record, self.announce, Path("."))
        with Workers(self.workers) as workers:
            return train(self.model, self.attachment, SFT(), batches, plan, outside, workers, resume_from)

    def record(self, metrics: dict[str, Any]) -> None:
        """Keep a step's metrics, then do what the test wants done after that step."""
        self.metrics.append(metrics)
        if self.on_step is not None:
            self.on_step(self, metrics)

    def weights(self) -> dict[str, Tensor]:
        """The trained tensors as they are now."""
        return {key: tensor.detach().clone() for key, tensor in self.attachment.trainables.items()}

    def gradient(self) -> dict[str, Tensor]:
        """The gradient of a run of one step: its first moment over 1 − β1."""
        assert self.steps == 1
        (checkpoint,) = self.saved
        prefix = "exp_avg."
        moments = {key.removeprefix(prefix): m for key, m in checkpoint.optimizer.items() if key.startswith(prefix)}
        return {key: moment / (1 - self.settings.optimizer.beta1) for key, moment in moments.items()}


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two sets of tensors are equal bit for bit."""
    return set(one) == set(other) and all(torch.equal(one[key], other[key]) for key in one)


def one_step(**values: Any) -> Run:
    """A run of one unclipped step."""
    run = Run(steps=1, settings=TrainingSettings(clip_norm=None), **values)
    run.go()
    return run
