"""What a recipe's plan is made from: the model's config, and its rows or such as the recipe allows."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from luthier.data.mixture import Mixture
from luthier.errors import DataError, RecipeError
from luthier.models.loading import choose_dtype
from luthier.models.shapes import NAMED
from luthier.models.sources import locate, read_config, stored_form_of, with_new_tokens
from luthier.planner.trace import Work
from luthier.quantization.settings import QuantizationSettings
from luthier.recipe import Recipe
from luthier.recipe.base import fast_of, head_of, settings_of
from luthier.store.files import read_json
from luthier.store.places import expanded
from luthier.types import Example, Origin, Part

_MOST_WORKERS = 8


@dataclass(frozen=True)
class Rows:
    """The rows that a run trains on, as its objective learns from them, and the tokenizer that made them.

    are_imagined: whether they only have the sizes that the recipe allows. stored: the form that the model comes quantized in.
    mixture: which rows an epoch takes.
    """

    examples: Sequence[Example]
    tokenizer: PreTrainedTokenizerBase | None = None
    are_imagined: bool = False
    stored: QuantizationSettings | None = None
    mixture: Mixture | None = None


def config_of(recipe: Recipe, announce: Callable[[str], None]) -> PreTrainedConfig:
    """The config of the recipe's model: of a name with a shape of its own, a config.json, or wherever models are found.

    Raises: as `locate` and `read_config` do; DataError for a config that says too little.
    """
    if _is_named(recipe):
        return _config(NAMED[recipe.model.name], recipe.model.name)
    if (file := _config_alone(recipe)) is not None:
        return _config(read_json(file), str(file))
    source = locate(recipe.model, announce)
    return with_new_tokens(read_config(source), source)


def is_shape_alone(recipe: Recipe) -> bool:
    """Whether the model is a config without weights, or a name that stands for one: there is no tokenizer to read rows."""
    return _is_named(recipe) or _config_alone(recipe) is not None


def _is_named(recipe: Recipe) -> bool:
    return recipe.model.config is None and recipe.model.name in NAMED


def _config_alone(recipe: Recipe) -> Path | None:
    if recipe.model.config is not None:
        return None
    path = expanded(recipe.model.name)
    if path.is_dir() and not any(path.glob("*.safetensors")):
        path = path / "config.json"
    return path if path.name == "config.json" and path.is_file() else None


def stored_quantization(recipe: Recipe, announce: Callable[[str], None]) -> QuantizationSettings | None:
    """About the form in which a model comes quantized; None for any other."""
    if is_shape_alone(recipe):
        return None
    stored = stored_form_of(locate(recipe.model, announce))
    return None if stored is None else stored.like


def _config(values: Any, where: str) -> PreTrainedConfig:
    kind = values.get("model_type") if isinstance(values, dict) else None
    if kind not in CONFIG_MAPPING:
        raise DataError(
            f"This config's model_type is {json.dumps(kind)}, which the installed transformers does not know.",
            "Use the config of a model that it knows.",
            file=where,
        )
    config: PreTrainedConfig = AutoConfig.for_model(**values)
    return config


def imagined_rows(recipe: Recipe, config: PreTrainedConfig) -> Rows:
    """Rows of the most tokens that the recipe allows, as many as a step has; half of the tokens are learned.

    Raises RecipeError for objectives whose rows cannot be imagined.
    """
    if recipe.objective.takes != "text" or recipe.objective.reads != "written" or config.is_encoder_decoder:
        raise RecipeError(
            "Rows of this kind cannot be imagined for a plan.",
            "Plan with the model's folder and the data, so that real rows are read.",
            field="data.train",
        )
    training, length = recipe.training, recipe.data.max_length
    count = training.rows_per_step or max(1, (training.tokens_per_step or 8 * length) // length)
    tokens_RT = np.arange(count)[:, None] + np.arange(length) % int(config.vocab_size)  # no two begin alike
    source_N = np.arange(length // 2, length - 1, dtype=np.int64)
    of_target = np.ones(len(source_N), np.float32), np.zeros(len(source_N), np.int64)
    rows = [
        Example((Part(tokens_T),), source_N, tokens_T[source_N + 1], *of_target, row, Origin("imagined", row + 1))
        for row, tokens_T in enumerate(tokens_RT % int(config.vocab_size))
    ]
    return Rows(tuple(rows), are_imagined=True)


def work_of(recipe: Recipe, config: PreTrainedConfig, rows: Rows, device: torch.device) -> Work:
    """The work of a recipe, its objective settled by its rows, on a device of that kind, which need not be here."""
    training = recipe.training
    settings = settings_of(recipe)
    is_gpu = device.type == "cuda"
    dtype = torch.bfloat16 if settings.dtype == "auto" and is_gpu else choose_dtype(settings.dtype, torch.device("cpu"))
    pays = training.autocast == "auto" and is_gpu and dtype == torch.float32
    return Work(
        config=config,
        dtype=dtype,
        fast=fast_of(recipe),
        method=recipe.method,
        objective=recipe.objective,
        training=training,
        quantization=recipe.quantization or rows.stored,
        head=head_of(recipe),
        rows=rows.examples,
        mixture=rows.mixture,
        workers=workers_of(recipe, device),
        seed=recipe.seed,
        shares_prefix=training.fast.prefix and not is_gpu,
        autocast=torch.bfloat16 if training.autocast == "bf16" or pays else None,
        tokenizer=rows.tokenizer,
        num_new_tokens=len(recipe.model.add_tokens),
    )


def workers_of(recipe: Recipe, device: torch.device) -> int:
    """How many workers compute at once there."""
    training = recipe.training
    if training.update_in_backward or device.type == "cuda":
        return 1
    return training.workers if isinstance(training.workers, int) else min(os.cpu_count() or 1, _MOST_WORKERS)
