"""What a recipe says about its base model, in the words of those who make one."""

from __future__ import annotations

from luthier.models.heads import ClassHead, Head
from luthier.models.language_model import FastModel
from luthier.models.loading import Wishes
from luthier.models.settings import ModelSettings
from luthier.recipe.settings import Recipe

RANDOM_START_LR = 1e-3
"""The peak learning rate of a model that begins at random weights: what small ones are commonly trained with."""


def head_of(recipe: Recipe) -> Head | None:
    """The head that the recipe's model is loaded with; None for the one that it writes with."""
    head = recipe.objective.head(recipe.seed)
    return recipe.method.class_head(head) if isinstance(head, ClassHead) else head


def settings_of(recipe: Recipe) -> ModelSettings:
    """The model settings; base weights that train are loaded in fp32 unless the recipe says otherwise."""
    if recipe.method.tunes_base and recipe.model.dtype == "auto":
        return recipe.model.model_copy(update={"dtype": "fp32"})
    return recipe.model


def default_lr_of(recipe: Recipe) -> float:
    """The peak learning rate of a recipe that gives none, before its optimizer's own factor."""
    return RANDOM_START_LR if recipe.model.config is not None else recipe.method.default_lr


def fast_of(recipe: Recipe) -> FastModel:
    """The fast paths of the model."""
    fast = recipe.training.fast
    return FastModel(
        attention=fast.attention, head=fast.head, gated_mlp=fast.gated_mlp, norm=fast.norm, linear=fast.linear
    )


def wishes_of(recipe: Recipe) -> Wishes:
    """What the method asks of a quantized base."""
    method = recipe.method
    return Wishes(method.keeps_full, method.prepare_weights, method.kind if method.needs_quantization else None)
