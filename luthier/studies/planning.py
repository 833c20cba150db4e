"""From a recipe on disk to what its plan is made from: the rows are read where there is a tokenizer, else imagined."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedConfig

from luthier.planner.request import Rows, config_of, imagined_rows, is_shape_alone, rows_of
from luthier.prepared import check_recipe
from luthier.recipe import Recipe


def planned_device(recipe: Recipe, gpu: bool) -> torch.device:
    """Where a recipe would run: on a GPU if the plan is for one, else where the recipe says."""
    if gpu or recipe.model.device.startswith("cuda"):
        return torch.device("cuda")
    return torch.device("cuda" if recipe.model.device == "auto" and torch.cuda.is_available() else "cpu")


def is_here(device: torch.device) -> bool:
    """Whether this machine has such a device."""
    return device.type == "cpu" or torch.cuda.is_available()


def read_request(recipe: Recipe, announce: Callable[[str], None]) -> tuple[Recipe, PreTrainedConfig, Rows]:
    """The recipe with what its rows settle, the config of its model, and its rows.

    Raises: the errors of reading model and data.
    """
    config = config_of(recipe, announce)
    if is_shape_alone(recipe):
        return recipe, config, imagined_rows(recipe, config)
    prepared = check_recipe(recipe, announce)
    settled = recipe.model_copy(update={"objective": prepared.objective})
    return settled, config, rows_of(settled, prepared, announce)
