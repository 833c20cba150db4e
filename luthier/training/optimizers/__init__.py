"""The optimizers by the names that recipes call them, one file for each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from luthier.ops.cuda_library import cuda_library
from luthier.training.flat import FlatTrainables
from luthier.training.optimizers.adafactor import Adafactor
from luthier.training.optimizers.adamw import AdamW, FlatAdamW
from luthier.training.optimizers.adamw_8bit import AdamW8bit
from luthier.training.optimizers.contract import Allocate, Optimizer, OptimizerSettings, PerTensor
from luthier.training.optimizers.galore import GaLore
from luthier.training.optimizers.lion import Lion
from luthier.training.optimizers.muon import Muon
from luthier.training.optimizers.paged import MappedFiles, PagedAdamW, PagedAdamW8bit, PinnedMemory, UnifiedMemory
from luthier.training.optimizers.sgd import SGD

__all__ = [
    "SGD",
    "Adafactor",
    "AdamW",
    "AdamW8bit",
    "AnyOptimizer",
    "FlatAdamW",
    "GaLore",
    "Lion",
    "Muon",
    "Optimizer",
    "OptimizerSettings",
    "PagedAdamW",
    "PagedAdamW8bit",
    "PerTensor",
    "optimizer_of",
]

OPTIMIZERS = (AdamW, AdamW8bit, PagedAdamW, PagedAdamW8bit, Adafactor, Lion, SGD, Muon, GaLore)
"""All of them, for tables and tests."""

AnyOptimizer = Annotated[
    AdamW | AdamW8bit | PagedAdamW | PagedAdamW8bit | Adafactor | Lion | SGD | Muon | GaLore,
    Field(discriminator="kind"),
]


def optimizer_of(
    settings: OptimizerSettings,
    trainables: FlatTrainables,
    tables: frozenset[str],
    folder: Path,
    *,
    by_tensor: bool = False,
) -> Optimizer:
    """The optimizer of the settings over these trainables.

    tables: the names of those whose rows are looked up or give logits. folder: where a state that lives in files has them.
    by_tensor: whether it is to move single tensors, each at its own time.
    """
    if isinstance(settings, AdamW) and not by_tensor:
        return FlatAdamW(trainables, settings)
    if not settings.is_paged:
        return PerTensor(trainables, settings, tables)
    return PerTensor(trainables, settings, tables, _pages(trainables.groups[0].vector.device, folder))


def _pages(device: torch.device, folder: Path) -> Allocate:
    """Where a state lives that is to be brought in by pages."""
    if device.type != "cuda":
        return MappedFiles(folder)
    library = cuda_library()
    return PinnedMemory() if library is None else UnifiedMemory(library, device)
