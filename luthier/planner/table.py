"""Methods and quantizations of one model beside each other: what each needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from transformers import PreTrainedConfig

from luthier.errors import LuthierError, RecipeError
from luthier.planner.alone import trace_all
from luthier.planner.plan import Target, needed, verdict_of
from luthier.planner.request import Rows, work_of
from luthier.recipe import Recipe
from luthier.recipe.loading import with_parts
from luthier.recipe.yaml_text import Parsed, Source

METHODS = ("full", "lora", "dora", "pfeiffer", "prefix-tuning", "ia3", "bitfit", "ladder")
QUANTIZATIONS = (None, "int8", "nf4")


@dataclass(frozen=True)
class TableRow:
    """One method over one form of the base. refusal: why there is no number."""

    method: str
    quantization: str | None
    gradient_checkpointing: bool
    num_trainable: int | None = None
    peak_bytes: int | None = None
    verdict: str = ""
    refusal: str = ""


def make_table(
    recipe: Recipe,
    config: PreTrainedConfig,
    rows: Rows,
    target: Target,
    announce: Callable[[str], None],
) -> list[TableRow]:
    """A row for each method, quantization, and with and without recomputed layers."""
    forms = (
        QUANTIZATIONS if rows.stored is None and rows.blocks is None else (None,)
    )  # what comes packed is packed no further
    blank = [TableRow(*each) for each in product(METHODS, forms, (False, True))]
    recipes = [_recipe(recipe, row) for row in blank]
    able = [(row, each) for row, each in zip(blank, recipes, strict=True) if isinstance(each, Recipe)]
    announce(f"Planning {len(able)} combinations ...")
    is_divided = target.shards > 1
    works = [work_of(each, config, rows, target.device, is_divided=is_divided) for _, each in able]
    made = []
    for (row, _), work, found in zip(able, works, trace_all(works), strict=True):
        key = row.method, row.quantization, row.gradient_checkpointing
        if isinstance(found, LuthierError):
            made.append(TableRow(*key, refusal=found.found))
            continue
        peak = needed(found, work, target).num_bytes
        made.append(TableRow(*key, found.num_trainable, peak, verdict_of(peak, target.memory_bytes)))
    return made


def _recipe(recipe: Recipe, row: TableRow) -> Recipe | None:
    """The recipe of a row; None for a method that cannot be over such a base."""
    parts = {
        "method": {"kind": row.method, **({"missing": "add-zero"} if row.method == "bitfit" else {})},
        "quantization": None if row.quantization is None else {"kind": row.quantization},
        "training": {"gradient_checkpointing": row.gradient_checkpointing, "update_in_backward": False},
    }
    try:
        return with_parts(recipe, Parsed(parts, {(): Source(None)}), Path.cwd())
    except RecipeError:
        return None
