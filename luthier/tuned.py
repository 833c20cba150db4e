"""The models of runs: what a recipe begins from, and what a finished run came to."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import torch

from luthier.data.rendering import Renderer, build_renderer
from luthier.data.template import read_template
from luthier.errors import NotFound, RecipeError, UsageError
from luthier.methods import ADAPTER, AdapterMethod
from luthier.methods.contract import Attachment
from luthier.methods.rows_files import read_adapter
from luthier.models.language_model import LanguageModel
from luthier.models.loading import load_model
from luthier.models.settings import ModelSettings
from luthier.prediction.reward import RewardScorer, ScoreHead
from luthier.prediction.scale import read_scale
from luthier.prediction.text_model import TextModel
from luthier.quantization.packed import QuantizedLinear
from luthier.recipe import Recipe
from luthier.recipe.base import fast_of, head_of, settings_of, wishes_of
from luthier.recipe.loading import recipe_of_reward_model, recipe_of_run
from luthier.training.checkpoint import load_checkpoint

Announce = Callable[[str], None]

REWARD = "reward"
"""The name that a reward adapter bears beside others."""


def load_run(folder: Path, announce: Announce) -> LanguageModel:
    """The model of a run with what it learned: the adapter under the name `default`, or the tuned weights themselves.

    Raises NotFound if the run has not finished.
    """
    recipe = recipe_of_run(folder)
    return (
        load_tuned(folder, recipe, announce) if recipe.method.tunes_base else load_attached(folder, recipe, announce)[0]
    )


def load_merged(folder: Path, recipe: Recipe, announce: Announce) -> LanguageModel:
    """The model of a run with what it learned in its weights. Raises RecipeError if the method does not merge."""
    if recipe.method.tunes_base:
        return load_tuned(folder, recipe, announce)
    model, attachment = load_attached(folder, recipe, announce)
    attachment.merge()
    return model


def load_tuned(folder: Path, recipe: Recipe, announce: Announce) -> LanguageModel:
    """The model whose own weights a run tuned."""
    tuned = folder / recipe.method.output_folder
    _require_output(tuned, folder)
    settings = recipe.model.at(tuned)
    return load_model(settings, announce, head=head_of(recipe))


def load_attached(folder: Path, recipe: Recipe, announce: Announce) -> tuple[LanguageModel, Attachment]:
    """The base model of a run, and what the run learned at work on it under the name `default`."""
    _require_output(folder / recipe.method.output_folder, folder)
    model = load_base_of(recipe, announce)
    attachment = recipe.method.continued(folder).attach(model, ADAPTER, recipe.seed, fast=recipe.training.fast.lora)
    return model, attachment


def load_at_step(folder: Path, step: int, announce: Announce) -> LanguageModel:
    """The model of a run as it was after so many steps. Raises: CheckpointNotFound, with the steps that are kept."""
    recipe = recipe_of_run(folder)
    checkpoint = load_checkpoint(folder, step)
    model = load_base_of(recipe, announce)
    attachment = recipe.method.attach(model, ADAPTER, recipe.seed, fast=recipe.training.fast.lora)
    attachment.load_state(checkpoint.method)
    trainables = attachment.trainables
    with torch.no_grad():
        for name, tensor in checkpoint.trainables.items():
            trainables[name].copy_(tensor)
    return model


def load_base(folder: Path, announce: Announce) -> LanguageModel:
    """The base model that a run began from."""
    return load_base_of(recipe_of_run(folder), announce)


def load_plain_text(name: str, announce: Announce) -> TextModel:
    """A model without a run that writes: a built-in name, a folder, a hub id or a .gguf file."""
    model = load_model(ModelSettings(name=name), announce)
    renderer = Renderer(model.tokenizer, read_template(None, model.tokenizer), answer_start=model.answer_start)
    return TextModel(model, renderer, None)


def load_run_text(folder: Path, announce: Announce) -> TextModel:
    """The model of a run, as one that writes."""
    recipe, model = recipe_of_run(folder), load_run(folder, announce)
    renderer = build_renderer(recipe.data, model.tokenizer, model.anatomy.family.pooled, model.answer_start)
    return TextModel(model, renderer, None if recipe.method.tunes_base else ADAPTER)


def load_reward(
    folder: Path, announce: Announce, *, beside: LanguageModel | None = None, name: str = REWARD
) -> RewardScorer:
    """The reward model of a run, ready to score.

    beside: a model of the same base; the reward adapter is then put into it, frozen, under `name`, and no weights are loaded: other
    adapters there are not touched, and the head stays with the scorer. Raises UsageError for a run that learned anything else, and
    for one that cannot stand beside that model.
    """
    recipe = recipe_of_reward_model(folder)
    output = folder / recipe.method.output_folder
    _require_output(output, folder)
    scale, budget = read_scale(output), recipe.training.tokens_per_micro_batch
    if beside is None:
        model, adapter, head = load_run(folder, announce), None if recipe.method.tunes_base else ADAPTER, None
    else:
        model, adapter, head = beside, name, _put_beside(folder, recipe, beside, name)
    renderer = build_renderer(recipe.data, model.tokenizer, model.anatomy.family.pooled)
    return RewardScorer(model, renderer, adapter, scale, head, budget)


def load_reward_at_step(folder: Path, step: int, announce: Announce) -> RewardScorer:
    """The reward model of a run as it was after so many steps; it tells its raw scores, for a scale is settled when a run ends.

    Raises: as `load_at_step`; UsageError for a run that learned anything else.
    """
    recipe, model = recipe_of_reward_model(folder), load_at_step(folder, step, announce)
    renderer = build_renderer(recipe.data, model.tokenizer, model.anatomy.family.pooled)
    adapter = None if recipe.method.tunes_base else ADAPTER
    return RewardScorer(model, renderer, adapter, tokens_at_once=recipe.training.tokens_per_micro_batch)


def _put_beside(folder: Path, recipe: Recipe, model: LanguageModel, name: str) -> ScoreHead:
    """Put a run's adapter into a model that bears others; its head. Raises UsageError where it does not fit."""
    method, parts = recipe.method.continued(folder), model.anatomy.family.class_head
    if not isinstance(method, AdapterMethod):
        raise UsageError(
            f"The run {folder} tuned the base's own weights ({recipe.method.kind}), so it cannot share a base with others.",
            "Load it as a model of its own, or train the reward model with an adapter such as lora.",
        )
    if recipe.provenance is not None and recipe.provenance.model_sha256 != model.identity.sha256:
        raise UsageError(
            f"The reward model {folder} was trained on {recipe.model.name}, and the weights of {model.identity.name} are others.",
            "Train both on one base, or load the reward model as a model of its own.",
        )
    if len(parts) != 1 or model.anatomy.purpose != "words":
        raise UsageError(
            f"The head of a reward model of type {model.hf.config.model_type!r} cannot stand beside a model that has one.",
            "Load the reward model as a model of its own.",
        )
    tensors = read_adapter(method.form, str(folder)).head
    attachment = method.attach_without_head(model, name, fast=recipe.training.fast.lora)
    for tensor in attachment.trainables.values():
        tensor.requires_grad_(False)
    bias = tensors.get(f"{parts[0].name}.bias")
    weight_1D = tensors[f"{parts[0].name}.weight"].to(model.device)
    return ScoreHead(weight_1D[0], 0.0 if bias is None else float(bias[0]))


def _require_output(output: Path, folder: Path) -> None:
    if not output.is_dir():
        raise NotFound(
            f"The run {folder} has not finished: there is no {output.name}/ in it.",
            f"Run 'luthier resume {shlex.quote(str(folder))}'.",
        )


def load_base_of(recipe: Recipe, announce: Announce) -> LanguageModel:
    """The base model of a recipe, with the fast paths that it asks for."""
    model = load_model(
        settings_of(recipe),
        announce,
        fast=fast_of(recipe),
        head=head_of(recipe),
        quantization=recipe.quantization,
        wishes=wishes_of(recipe),
        seed=recipe.seed,
    )
    _check_trainable(recipe, model)
    if recipe.training.gradient_checkpointing:
        model.checkpoint_layers()
    return model


def _check_trainable(recipe: Recipe, model: LanguageModel) -> None:
    """Raise RecipeError if the method trains layers that come quantized."""
    anatomy = model.anatomy
    whole = recipe.method.traits.over_4bit
    trained = recipe.method.keeps_full(anatomy) if whole else anatomy.linears
    if any(isinstance(model.hf.get_submodule(name), QuantizedLinear) for name in trained):
        raise RecipeError(
            f"{recipe.method.kind} trains layers that come quantized in {recipe.model.name}.",
            "Name the unquantized model, or set method.kind to lora.",
            field="method.kind",
        )
