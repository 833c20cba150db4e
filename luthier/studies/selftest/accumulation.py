"""Eight rows one at a time give the loss and the gradient of eight rows at once."""

from __future__ import annotations

from torch import Tensor

from luthier.ops.workers import worker_count
from luthier.studies.selftest.findings import SUMS, Found, Measured, apart
from luthier.studies.selftest.subject import Subject, attached
from luthier.studies.selftest.training import Trained, trained


def measure(subject: Subject) -> Found:
    """One optimizer step, as one micro-batch and as one for each row on all workers."""
    longest = max(row.num_tokens for row in subject.rows)
    together = _one_step(subject, "together", longest * len(subject.rows), 1)
    apart_ = _one_step(subject, "one at a time", longest, worker_count("auto", subject.model.device))
    losses = [step.steps[0]["loss"] for step in (apart_, together)]
    return [
        Measured("loss", abs(losses[0] - losses[1]) / abs(losses[1]), max(SUMS, subject.tolerance / 10)),
        Measured("gradient", apart(_gradient(apart_), _gradient(together)), subject.tolerance),
    ]


def _one_step(subject: Subject, name: str, budget: int, workers: int) -> Trained:
    attachment = attached(subject.model, name)
    rows = subject.rows
    return trained(
        subject.model, attachment, rows, subject.folder,
        steps=1, rows_per_step=len(rows), budget=budget, workers=workers,
    )  # fmt: skip


def _gradient(step: Trained) -> dict[str, Tensor]:
    """The first moments after one step: the gradient times 1 − β₁."""
    state = step.checkpoints[-1].optimizer
    return {name: tensor for name, tensor in state.items() if name.startswith("exp_avg.")}
