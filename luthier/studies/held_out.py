"""The loss of several models on the rows that a run held out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from luthier.data.batches import evaluation_batches
from luthier.evaluation.loss import held_out_loss
from luthier.models.language_model import LanguageModel
from luthier.ops.workers import Workers
from luthier.prepared import check_recipe
from luthier.recipe import Recipe
from luthier.types import Example


def held_out_losses(
    recipe: Recipe, asked: Mapping[str, tuple[LanguageModel, str | None]], announce: Callable[[str], None]
) -> dict[str, float] | None:
    """Nats a learned token by the name of each model and adapter; None if the run held out no rows."""
    return losses_on(recipe, check_recipe(recipe, announce).dataset.validation, asked)


def losses_on(
    recipe: Recipe, held_out: Sequence[Example], asked: Mapping[str, tuple[LanguageModel, str | None]]
) -> dict[str, float] | None:
    """As `held_out_losses`, on held-out rows that are read already."""
    if not held_out:
        return None
    training, (first, _) = recipe.training, next(iter(asked.values()))
    with Workers(training.workers if isinstance(training.workers, int) else 1) as workers:
        batches = evaluation_batches(
            held_out, training.tokens_per_micro_batch, workers.count, first.layout, first.pad_id
        )
        return {
            name: held_out_loss(model, recipe.objective.alone, batches, adapter, workers)
            for name, (model, adapter) in asked.items()
        }
