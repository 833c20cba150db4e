"""What can be changed in a recipe that does not fit, each change with what it would need then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from luthier.errors import LuthierError
from luthier.recipe import Recipe
from luthier.recipe.loading import with_parts
from luthier.recipe.yaml_text import Parsed, Source

Change = tuple[str, dict[str, Any]]
"""What to write into the recipe, in words and as parts of it."""


def changes(recipe: Recipe) -> list[tuple[str, Recipe]]:
    """Every change that this recipe allows, with the recipe that it leads to."""
    found = []
    for words, parts in (change for lever in _LEVERS if (change := lever(recipe)) is not None):
        try:
            found.append((words, with_parts(recipe, Parsed(parts, {(): Source(None)}), Path.cwd())))
        except LuthierError:
            continue  # the method or the objective does not go with it
    return found


def _checkpointing(recipe: Recipe) -> Change | None:
    if recipe.training.gradient_checkpointing:
        return None
    return "training.gradient_checkpointing: true", {"training": {"gradient_checkpointing": True}}


def _four_bits(recipe: Recipe) -> Change | None:
    if recipe.quantization is not None or not recipe.method.traits.over_4bit:
        return None
    return "quantization: {kind: nf4}", {"quantization": {"kind": "nf4"}}


def _low_rank(recipe: Recipe) -> Change | None:
    if not recipe.method.tunes_base:
        return None
    return "method: {kind: lora}", {"method": {"kind": "lora"}, "training": {"update_in_backward": False}}


def _low_rank_over_four_bits(recipe: Recipe) -> Change | None:
    if not recipe.method.tunes_base:
        return None
    parts = {"method": {"kind": "lora"}, "quantization": {"kind": "nf4"}, "training": {"update_in_backward": False}}
    return "method: {kind: lora} with quantization: {kind: nf4}", parts


def _smaller_micro_batches(recipe: Recipe) -> Change | None:
    smaller = max(recipe.training.tokens_per_micro_batch // 2, recipe.data.max_length)
    if smaller >= recipe.training.tokens_per_micro_batch or recipe.training.update_in_backward:
        return None
    return f"training.tokens_per_micro_batch: {smaller}", {"training": {"tokens_per_micro_batch": smaller}}


def _one_worker(recipe: Recipe) -> Change | None:
    return None if recipe.training.workers == 1 else ("training.workers: 1", {"training": {"workers": 1}})


def _small_states(recipe: Recipe) -> Change | None:
    if recipe.training.optimizer.kind != "adamw":
        return None
    return "training.optimizer: adamw-8bit", {"training": {"optimizer": {"kind": "adamw-8bit"}}}


def _states_in_files(recipe: Recipe) -> Change | None:
    if recipe.training.optimizer.is_paged:
        return None
    return "training.optimizer: paged-adamw-8bit", {"training": {"optimizer": {"kind": "paged-adamw-8bit"}}}


_LEVERS: tuple[Callable[[Recipe], Change | None], ...] = (
    _checkpointing,
    _four_bits,
    _low_rank,
    _low_rank_over_four_bits,
    _smaller_micro_batches,
    _one_worker,
    _small_states,
    _states_in_files,
)
