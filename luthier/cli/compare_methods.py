"""`luthier compare-methods`: several methods on the same rows, with the same budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.options import Json, Overrides
from luthier.cli.output import aligned, emit, say


def compare_methods(
    recipe: Annotated[Path, typer.Argument(help="The recipe that all methods share; it must hold out rows.")],
    methods: Annotated[str, typer.Option("--methods", help="Their kinds, such as lora,full; or all.")],
    budget_tokens: Annotated[
        int | None, typer.Option("--budget-tokens", min=1, help="About so many tokens of input for each.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="So many seeds for each.")] = 1,
    out: Annotated[Path | None, typer.Option("--out", help="The study's folder; unset: runs/RECIPE-methods.")] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Train each method on the same rows and compare what they gain and cost; goes on where it was broken off."""
    from luthier import api
    from luthier.methods import METHODS, kind_of
    from luthier.recipe import load_recipe
    from luthier.store.places import expanded
    from luthier.studies.comparison_report import REPORT, write_comparison_report
    from luthier.studies.method_comparison import compare_methods as compare

    settings = load_recipe(recipe, overrides or ())
    named = [kind_of(method) for method in METHODS] if methods == "all" else methods.split(",")
    kinds = [kind.strip() for kind in named if kind.strip()]
    folder = expanded(out or api.RUNS / f"{recipe.stem}-methods")
    found = compare(settings, kinds, folder, say, budget_tokens=budget_tokens, seeds=seeds)
    write_comparison_report(found)
    emit(found.as_json(), "\n".join([*aligned(found.as_table()), "", str(folder / REPORT)]), as_json)
