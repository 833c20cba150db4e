"""The models of runs: what a recipe begins from, and what a finished run came to."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import torch

from luthier.errors import NotFound, RecipeError
from luthier.methods import ADAPTER
from luthier.methods.contract import Attachment
from luthier.models.language_model import LanguageModel
from luthier.models.loading import load_model
from luthier.quantization.packed import QuantizedLinear
from luthier.recipe import Recipe
from luthier.recipe.base import fast_of, head_of, settings_of, wishes_of
from luthier.recipe.loading import recipe_of_run
from luthier.training.checkpoint import load_checkpoint

Announce = Callable[[str], None]


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
