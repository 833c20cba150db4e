"""What a run is made from: the model, the rows, and the versions that computed it."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from luthier.data.dataset import Dataset
from luthier.data.facts import digests_of
from luthier.errors import RunMismatch
from luthier.recipe.settings import Provenance
from luthier.version import __version__


def provenance_of(model_sha256: str, dataset: Dataset, companions: Mapping[str, str]) -> Provenance:
    """What a run that begins now is made from. companions: the hash of each other model that its objective hears, by its role."""
    return Provenance(
        luthier=__version__,
        torch=str(torch.__version__),
        transformers=transformers.__version__,
        model_sha256=model_sha256,
        data_sha256=dataset_sha256(dataset),
        companions=dict(companions),
    )


def dataset_sha256(dataset: Dataset) -> str:
    """The hash of the rows and of all that training and evaluation take from them: tokens, targets, weights."""
    digest = hashlib.sha256(f"{dataset.sha256} {len(dataset.train)} {len(dataset.validation)}".encode())
    for rows in (dataset.train, dataset.validation):
        digest.update(digests_of(rows).tobytes())
    return digest.hexdigest()


def check_same(begun: Provenance, now: Provenance, model: str, file: Path, announce: Callable[[str], None]) -> None:
    """Raise RunMismatch, naming what differs, unless model and data are those that the run was begun with.

    Other versions than then are announced: they compute the same, but perhaps not to the last bit.
    """
    others = [
        (f"companions.{role}", f"The {role}", begun.companions.get(role, ""), now.companions.get(role, ""))
        for role in sorted({*begun.companions, *now.companions})
    ]
    for field, what, before, after in (
        ("model_sha256", f"The model {model}", begun.model_sha256, now.model_sha256),
        ("data_sha256", "The data (the rows, or how they become tokens)", begun.data_sha256, now.data_sha256),
        *others,
    ):
        if before != after:
            raise RunMismatch(
                f"{what} is not what this run was begun with: its hash was {before[:12]}…, and is now {after[:12]}….",
                "Put the old files back, or begin a new run with 'luthier train'.",
                file=str(file),
                field=f"provenance.{field}",
            )
    for name, before, after in (
        ("luthier", begun.luthier, now.luthier),
        ("torch", begun.torch, now.torch),
        ("transformers", begun.transformers, now.transformers),
    ):
        if before != after:
            announce(f"The run was begun with {name} {before}; with {after} its last bits may come out otherwise.")


def environment(device: torch.device) -> dict[str, Any]:
    """The versions and the machine that a run is made with."""
    return {
        "luthier": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": _cpu(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def _cpu() -> str:
    """The name of the processor; empty where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
