"""When it pays to keep what frozen lower layers give for each row, and where."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path

import torch

from luthier.data.dataset import Dataset
from luthier.methods.contract import Attachment
from luthier.models.language_model import LanguageModel
from luthier.models.taps import Taps
from luthier.models.trunk import DTYPES, TrunkCache
from luthier.training.settings import TrainingSettings
from luthier.types import Example

FOLDER = "trunk"


def keeps_trunk(settings: TrainingSettings, attachment: Attachment, num_rows: int) -> bool:
    """Whether the lower layers say the same of a row each time, and are asked for it more than once."""
    if attachment.taps.count == 0 or settings.trunk_cache_gb == 0:
        return False
    if settings.steps is None:
        return settings.epochs > 1
    return settings.tokens_per_step is not None or settings.steps * (settings.rows_per_step or 8) > num_rows


def open_trunk_cache(
    settings: TrainingSettings,
    run_folder: Path,
    model: LanguageModel,
    attachment: Attachment,
    dataset: Dataset,
    announce: Callable[[str], None],
) -> TrunkCache | None:
    """The cache in a run's folder; None where it would not serve, or would take more disk than the recipe allows."""
    if not keeps_trunk(settings, attachment, len(dataset.train)):
        return None
    taps, width = attachment.taps, int(model.hf.config.hidden_size)
    dtype = DTYPES[settings.trunk_cache_dtype]
    gigabytes = kept_bytes(chain(dataset.train, dataset.validation), taps, width, dtype) / 1e9
    what = "what the frozen layers give" if taps.count == 1 else f"what {taps.count} of the frozen layers give"
    if gigabytes > settings.trunk_cache_gb:
        announce(
            f"To keep {what} for each row would take {gigabytes:.1f} GB, more than training.trunk_cache_gb "
            f"({settings.trunk_cache_gb:g}): every epoch computes it anew."
        )
        return None
    announce(f"Kept on disk until the run ends, so that later epochs begin there: {what}, {gigabytes:.2f} GB.")
    return TrunkCache(run_folder / FOLDER, taps, width, dtype, f"{model.identity.sha256} {model.dtype}")


def kept_bytes(examples: Iterable[Example], taps: Taps, width: int, dtype: torch.dtype) -> int:
    """What the states of these rows take on disk, if no two of them are alike."""
    num_states = sum(
        example.num_part_tokens * len(taps.own) + example.num_source_tokens * len(taps.source) for example in examples
    )
    return num_states * width * dtype.itemsize
