"""What a recipe's plan is made from: the model's config, and its rows or such as the recipe allows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from luthier.data.mixture import Mixture
from luthier.errors import DataError, RecipeError
from luthier.models.loading import choose_dtype
from luthier.models.settings import ModelSettings
from luthier.models.shapes import NAMED
from luthier.models.sources import locate, read_config, with_new_tokens
from luthier.objectives import Companion
from luthier.ops.workers import worker_count
from luthier.planner.beside import Other
from luthier.planner.packed import PackedBase, as_in_blocks, as_settings_say, as_stored
from luthier.planner.scorers import Scorer
from luthier.planner.work import Work
from luthier.prepared import Prepared
from luthier.quantization.settings import QuantizationSettings
from luthier.recipe import Recipe
from luthier.recipe.base import fast_of, head_of, settings_of
from luthier.recipe.companions import base_of, run_of, run_recipe, told_of
from luthier.recipe.loading import recipe_of_reward_model
from luthier.rewarded import texts_of
from luthier.rlhf import RolloutObjective
from luthier.rlhf.pretraining import Texts
from luthier.store.files import read_json
from luthier.store.places import expanded
from luthier.types import Example, FloatArray, IntArray, Origin, Part, Rendered


@dataclass(frozen=True)
class Rows:
    """The rows that a run trains on, as its objective learns from them, and the tokenizer that made them.

    Of an objective whose answers the model writes itself, its prompts.
    are_imagined: whether they only have the sizes that the recipe allows. stored: how the model comes quantized; blocks: how it does
    in a GGUF file that is used as it is.
    mixture: which rows an epoch takes. held_out: the held-out rows. texts: of pre-training, mixed in. draws: whether rows are drawn
    anew in each epoch.
    """

    examples: Sequence[Example]
    tokenizer: PreTrainedTokenizerBase | None = None
    are_imagined: bool = False
    stored: PackedBase | None = None
    blocks: PackedBase | None = None
    mixture: Mixture | None = None
    held_out: Sequence[Example] = ()
    texts: Texts | None = None
    draws: bool = False


def rows_of(recipe: Recipe, prepared: Prepared, announce: Callable[[str], None]) -> Rows:
    """The rows of a recipe that were read. Raises: as finding the model and reading what its files have packed do."""
    dataset, source, quantization = prepared.dataset, locate(recipe.model, announce, weights=False), recipe.quantization
    is_used_packed = quantization is not None and quantization.kind == "gguf"
    return Rows(
        dataset.train if isinstance(prepared.objective, RolloutObjective) else prepared.first_rows,
        prepared.tokenizer,
        stored=as_stored(source),
        blocks=as_in_blocks(source, read_config(source), quantization) if quantization and is_used_packed else None,
        mixture=dataset.mixture,
        held_out=dataset.validation,
        texts=texts_of(recipe, prepared),
        draws=prepared.drawing is not None,
    )


def config_of(recipe: Recipe, announce: Callable[[str], None]) -> PreTrainedConfig:
    """The config of the recipe's model: of a name with a shape of its own, a config.json, or wherever models are found.

    Raises: as `locate` and `read_config` do; DataError for a config that says too little.
    """
    return _config_of(recipe.model, announce)


def _config_of(model: ModelSettings, announce: Callable[[str], None]) -> PreTrainedConfig:
    if _is_named(model):
        return _config(NAMED[model.name], model.name)
    if (file := _config_alone(model)) is not None:
        return _config(read_json(file), str(file))
    source = locate(model, announce, weights=False)
    return with_new_tokens(read_config(source), source)


def is_shape_alone(recipe: Recipe) -> bool:
    """Whether the model is a config without weights, or a name that stands for one: there is no tokenizer to read rows."""
    return _has_shape_alone(recipe.model)


def _has_shape_alone(model: ModelSettings) -> bool:
    return _is_named(model) or _config_alone(model) is not None


def _is_named(model: ModelSettings) -> bool:
    return model.config is None and model.name in NAMED


def _config_alone(model: ModelSettings) -> Path | None:
    if model.config is not None:
        return None
    path = expanded(model.name)
    if path.is_dir() and not any(path.glob("*.safetensors")):
        path = path / "config.json"
    return path if path.name == "config.json" and path.is_file() else None


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
    objective = recipe.objective
    writes_itself = isinstance(objective, RolloutObjective)
    if (objective.takes != "text" and not writes_itself) or objective.reads != "written" or config.is_encoder_decoder:
        raise RecipeError(
            "Rows of this kind cannot be imagined for a plan.",
            "Plan with the model's folder and the data, so that real rows are read.",
            field="data.train",
        )
    training, length = recipe.training, objective.longest_text(recipe.data.max_length)
    count = training.rows_per_step or max(1, (training.tokens_per_step or 8 * length) // length)
    count *= objective.minibatches if isinstance(objective, RolloutObjective) else 1
    tokens_RT = (np.arange(count)[:, None] + np.arange(length)) % int(config.vocab_size)  # no two begin alike
    learned_T = (np.arange(length) >= length - length // 2).astype(np.float32)
    rows = tuple(_imagined(recipe, tokens_T, learned_T, row) for row, tokens_T in enumerate(tokens_RT))
    return Rows(rows, are_imagined=True, held_out=_imagined_apart(recipe, rows))


def _imagined(recipe: Recipe, tokens_T: IntArray, learned_T: FloatArray, row: int) -> Example:
    """A row of these tokens, as the objective learns from it; of a text, those are learned whose weight is not 0."""
    origin = Origin("imagined", row + 1)
    if isinstance(recipe.objective, RolloutObjective):
        return recipe.objective.example(Rendered(tokens_T, learned_T), row, origin)
    source_N = np.flatnonzero(learned_T[1:])
    of_target = np.ones(len(source_N), np.float32), np.zeros(len(source_N), np.int64)
    return Example((Part(tokens_T),), source_N, tokens_T[source_N + 1], *of_target, row, origin)


def _imagined_apart(recipe: Recipe, rows: Sequence[Example]) -> tuple[Example, ...]:
    """Held-out rows, as many as are answered."""
    if recipe.data.validation == "none":
        return ()
    objective, answered = recipe.objective, recipe.training.evaluate_generated
    count = objective.held_out_prompts if isinstance(objective, RolloutObjective) else 0
    return (rows[0],) * (count if answered is None else answered.rows)


def work_of(
    recipe: Recipe, config: PreTrainedConfig, rows: Rows, device: torch.device, *, is_divided: bool = False
) -> Work:
    """The work of a recipe, its objective settled by its rows, on a device of that kind, which need not be here.

    is_divided: whether ranks share weights, gradients and state.
    """
    training = recipe.training
    settings = settings_of(recipe)
    is_gpu = device.type == "cuda"
    dtype = _dtype_of(settings, is_gpu)
    pays = training.autocast == "auto" and is_gpu and dtype == torch.float32
    return Work(
        config=config,
        dtype=dtype,
        fast=fast_of(recipe),
        method=recipe.method,
        objective=recipe.objective,
        training=training,
        quantization=_packed(recipe.quantization, rows),
        head=head_of(recipe),
        rows=rows.examples,
        mixture=rows.mixture,
        workers=workers_of(recipe, device),
        seed=recipe.seed,
        shares_prefix=training.fast.prefix and not is_gpu,
        autocast=torch.bfloat16 if training.autocast == "bf16" or pays else None,
        tokenizer=rows.tokenizer,
        num_new_tokens=len(recipe.model.add_tokens),
        others=tuple(_other(companion, recipe, is_gpu) for companion in recipe.objective.others),
        scorers=tuple(_scorer(Path(path), recipe, is_gpu) for path in _scorers_of(recipe)),
        held_out=rows.held_out,
        texts=rows.texts,
        draws=rows.draws,
        is_divided=is_divided,
    )


def _packed(quantization: QuantizationSettings | None, rows: Rows) -> PackedBase | None:
    """What of the base is packed."""
    if quantization is None:
        return rows.stored
    if quantization.kind == "gguf" and rows.blocks is not None:
        return rows.blocks
    return as_settings_say(quantization)


def _dtype_of(model: ModelSettings, is_gpu: bool) -> torch.dtype:
    return torch.bfloat16 if model.dtype == "auto" and is_gpu else choose_dtype(model.dtype, torch.device("cpu"))


def _other(companion: Companion, recipe: Recipe, is_gpu: bool) -> Other:
    """A companion of the recipe's objective. Raises as finding the model does."""
    folder = run_of(companion)
    own = None if folder is None else run_recipe(companion, folder, recipe.model.device)
    with told_of(companion):
        other = _beside(base_of(companion, recipe.model.device), own, recipe, is_gpu)
        return replace(other, role=companion.role, kept=companion.kept)


def _beside(base: ModelSettings, own: Recipe | None, recipe: Recipe, is_gpu: bool) -> Other:
    """A model beside a recipe's own. own: the recipe of the run that it came out of. Raises as finding the model does."""
    stored = None if _has_shape_alone(base) else as_stored(locate(base, _in_silence, weights=False))
    chosen = None if own is None or own.quantization is None else as_settings_say(own.quantization)
    return Other(
        role="",
        config=_config_of(base, _in_silence),
        dtype=_dtype_of(base, is_gpu),
        fast=fast_of(recipe),
        quantization=chosen or stored,
        method=None if own is None or own.method.tunes_base else own.method,
        kept=None,
    )


def _in_silence(sentence: str) -> None:
    """Announce nothing: it was said when the rows were read."""


def _scorers_of(recipe: Recipe) -> list[str]:
    """The runs of the reward models that an objective asks."""
    objective = recipe.objective
    named = objective.models if isinstance(objective, RolloutObjective) else ()
    return [run for each in named for run in each.runs]


def _scorer(folder: Path, recipe: Recipe, is_gpu: bool) -> Scorer:
    """The reward model of a run, beside the policy wherever `load_reward` puts it there. Raises as finding the run and its model do."""
    own = recipe_of_reward_model(folder)
    base = own.model.at(folder / own.method.output_folder) if own.method.tunes_base else own.model
    budget = own.training.tokens_per_micro_batch
    if not own.method.tunes_base and _is_one_model(base, recipe.model):
        return Scorer(own.method, None, budget)
    return Scorer(own.method, replace(_beside(base, own, own, is_gpu), head=head_of(own)), budget)


def _is_one_model(one: ModelSettings, other: ModelSettings) -> bool:
    """Whether two recipes name the same weights."""
    if _has_shape_alone(one) or _has_shape_alone(other):
        return one.name == other.name
    return locate(one, _in_silence, weights=False).folder == locate(other, _in_silence, weights=False).folder


def workers_of(recipe: Recipe, device: torch.device) -> int:
    """How many workers compute at once there."""
    return 1 if recipe.training.update_in_backward else worker_count(recipe.training.workers, device)
