"""When it pays to keep what frozen lower layers give for each row, and where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from luthier.data.dataset import Dataset
from luthier.methods.contract import Attachment
from luthier.models.language_model import LanguageModel
from luthier.models.trunk import DTYPES, TrunkCache, bytes_a_token
from luthier.training.settings import TrainingSettings

FOLDER = "trunk"


def keeps_trunk(settings: TrainingSettings, attachment: Attachment, num_rows: int) -> bool:
    """Whether the lower layers say the same of a row each time, and are asked for it more than once."""
    if not attachment.taps or settings.trunk_cache_gb == 0:
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
    if model.anatomy.encoder is not None or not keeps_trunk(settings, attachment, len(dataset.train)):
        return None  # a decoder's layers read what its encoder gives too, which is not kept
    width = int(model.hf.config.hidden_size)
    dtype = DTYPES[settings.trunk_cache_dtype]
    num_tokens = sum(example.num_tokens for example in (*dataset.train, *dataset.validation))
    gigabytes = num_tokens * bytes_a_token(len(attachment.taps), width, dtype) / 1e9
    count = len(attachment.taps)
    what = "what the frozen layers give" if count == 1 else f"what {count} of the frozen layers give"
    if gigabytes > settings.trunk_cache_gb:
        announce(
            f"To keep {what} for each row would take {gigabytes:.1f} GB, more than training.trunk_cache_gb "
            f"({settings.trunk_cache_gb:g}): every epoch computes it anew."
        )
        return None
    announce(f"Kept on disk until the run ends, so that later epochs begin there: {what}, {gigabytes:.2f} GB.")
    return TrunkCache(run_folder / FOLDER, attachment.taps, width, dtype)
