"""Runs of the loop over a self-test's rows, everything that they say kept in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from luthier.data.batches import StepBatches
from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.models.language_model import LanguageModel
from luthier.objectives import SFT
from luthier.ops.workers import Workers
from luthier.training.checkpoint import Checkpoint
from luthier.training.loop import Outside, Plan, train
from luthier.training.settings import TrainingSettings
from luthier.types import Example

_SEED = 3
_PEAK_LR = 1e-3


@dataclass(frozen=True)
class Trained:
    """What a run said: each step's numbers, its checkpoints, and the trained tensors as they ended."""

    steps: list[dict[str, Any]]
    checkpoints: list[Checkpoint]
    tensors: dict[str, Tensor]


def trained(
    model: LanguageModel,
    attachment: AdapterAttachment,
    rows: tuple[Example, ...],
    folder: Path,
    *,
    steps: int,
    rows_per_step: int,
    budget: int,
    workers: int = 1,
    resume_from: Checkpoint | None = None,
) -> Trained:
    """Train an adapter on the rows. budget: most tokens of a micro-batch."""
    batches = StepBatches(
        rows, rows_per_step=rows_per_step, tokens_per_step=None, budget=budget, workers=workers, layout=model.layout,
        pad_id=model.pad_id, seed=_SEED, steps=steps,
    )  # fmt: skip
    settings = TrainingSettings(clip_norm=None)
    plan = Plan(settings, _SEED, steps, _PEAK_LR, evaluate_every=steps, checkpoint_every=1)
    found = Trained([], [], {})
    outside = Outside(None, found.checkpoints.append, found.steps.append, lambda sentence: None, folder)
    with Workers(workers) as pool:
        train(model, attachment, SFT(), batches, plan, outside, pool, resume_from)
    found.tensors.update({name: tensor.detach().clone() for name, tensor in attachment.trainables.items()})
    return found
