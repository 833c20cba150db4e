"""From a recipe on disk to what its plan is made from: the rows are read where there is a tokenizer, else imagined."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedConfig

from luthier.objectives import Objective
from luthier.planner.request import Rows, config_of, imagined_rows, is_shape_alone, stored_quantization
from luthier.prepared import check_recipe
from luthier.recipe import Recipe


def has_gpu() -> bool:
    """Whether torch can use a GPU on this machine."""
    return torch.cuda.is_available()


def planned_device(recipe: Recipe, gpu: bool) -> torch.device:
    """Where a recipe would run: on a GPU if the plan is for one, else where the recipe says."""
    if gpu or recipe.model.device.startswith("cuda"):
        return torch.device("cuda")
    return torch.device("cuda" if recipe.model.device == "auto" and torch.cuda.is_available() else "cpu")


def read_request(recipe: Recipe, announce: Callable[[str], None]) -> tuple[PreTrainedConfig, Rows, Objective]:
    """The config of the recipe's model, its rows, and its objective with what the rows settle.

    Raises: the errors of reading model and data.
    """
    config = config_of(recipe, announce)
    if is_shape_alone(recipe):
        return config, imagined_rows(recipe, config), recipe.objective
    prepared = check_recipe(recipe, announce)
    stored = stored_quantization(recipe, announce)
    return config, Rows(prepared.dataset.train, prepared.tokenizer, stored=stored), prepared.objective
