"""`luthier compare-methods`: several methods on the same rows, with the same budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.options import Json, Overrides
from luthier.cli.output import aligned, emit, say

if TYPE_CHECKING:
    from luthier.recipe import Recipe
    from luthier.studies.contenders import Contender


def compare_methods(
    recipe: Annotated[Path, typer.Argument(help="The recipe that all methods share; it must hold out rows.")],
    methods: Annotated[
        str, typer.Option("--methods", help="Their kinds, such as lora,full; all; or a YAML file with their settings.")
    ],
    budget_tokens: Annotated[
        int | None, typer.Option("--budget-tokens", min=1, help="About so many tokens of input for each.")
    ] = None,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="So many seeds for each that the file does not give a number.")
    ] = 1,
    out: Annotated[Path | None, typer.Option("--out", help="The study's folder; unset: runs/RECIPE-methods.")] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Train each method on the same rows and compare what they gain and cost; goes on where it was broken off."""
    from luthier import api
    from luthier.recipe import load_recipe
    from luthier.store.places import expanded
    from luthier.studies.comparison_report import REPORT, write_comparison_report
    from luthier.studies.method_comparison import compare_methods as compare

    settings = load_recipe(recipe, overrides or ())
    folder = expanded(out or api.RUNS / f"{recipe.stem}-methods")
    found = compare(settings, _contenders(settings, methods, seeds), folder, say, budget_tokens=budget_tokens)
    write_comparison_report(found)
    emit(found.as_json(), "\n".join([*aligned(found.as_table()), "", str(folder / REPORT)]), as_json)


def _contenders(recipe: Recipe, methods: str, seeds: int) -> list[Contender]:
    from luthier.store.places import expanded
    from luthier.studies.contenders import contenders_of_all, contenders_of_kinds, read_contenders

    if methods.endswith((".yaml", ".yml")):
        return read_contenders(recipe, expanded(Path(methods)), seeds)
    if methods != "all":
        return contenders_of_kinds(recipe, [kind.strip() for kind in methods.split(",") if kind.strip()], seeds)
    found, left_out = contenders_of_all(recipe, seeds)
    if left_out:
        say(f"Left out, because they need settings: {', '.join(left_out)}. A YAML file of methods can give them.")
    return found
