"""`luthier import`: another tool's recipe as one of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.options import Json
from luthier.cli.output import emit, quoted, say
from luthier.errors import UsageError


def import_recipe(
    file: Annotated[
        Path,
        typer.Argument(help="A recipe of LLaMA-Factory, Axolotl or torchtune, or an OpenAI fine-tuning job as JSON."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Where our recipe goes; unset: the file's name with .luthier.yaml.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Your training rows, in the place of the file's own.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Turn another tool's recipe into one of ours, and name all that has no equivalent."""
    from luthier.recipe.importing import import_recipe as imported_from
    from luthier.store.files import write_text
    from luthier.store.places import expanded

    file = expanded(file)
    recipe = file.with_name(f"{file.stem}.luthier.yaml") if out is None else expanded(out)
    if recipe.exists() and not force:
        raise UsageError(f"{recipe} is there already.", "Choose another name with --out, or replace it with --force.")
    imported = imported_from(file, data)
    write_text(recipe, imported.as_yaml(file.name))
    say(
        f"A recipe of {imported.tool}: {len(imported.same)} settings carried over, {len(imported.needless)} needless here."
    )
    for key, value, why in imported.lost:
        say(f"  without an equivalent: {key} = {value} ({why})")
    say(f"Next: luthier check {quoted(recipe)}")
    document = {
        "recipe": str(recipe),
        "tool": imported.tool,
        "same": [{"theirs": theirs, "ours": ours} for theirs, ours in imported.same],
        "needless": [{"theirs": theirs, "why": why} for theirs, why in imported.needless],
        "lost": [{"theirs": theirs, "value": value, "why": why} for theirs, value, why in imported.lost],
    }
    emit(document, str(recipe), as_json)
