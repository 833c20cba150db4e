"""`luthier new`: a commented recipe for the user's own rows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.options import Json
from luthier.cli.output import emit, quoted, say
from luthier.errors import UsageError

if TYPE_CHECKING:
    from luthier.data.formats import Natural

_OPENING = """{count} {form} rows from {data} ({reason}).

Look at what is learned:  luthier check {recipe}
Tune:                     luthier train {recipe}
Every field:              luthier schema --markdown
"""


def new(
    data: Annotated[str, typer.Argument(help="Your rows: a file, a folder, a pattern, or a hub name.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Where the recipe goes; unset: the data's name with .yaml.")
    ] = None,
    model: Annotated[str, typer.Option("--model", help="The base model.")] = "smollm2-135m",
    objective: Annotated[
        str | None, typer.Option("--objective", help="The kind of objective; unset: what the rows are made for.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write a commented recipe for your own rows, after reading them through."""
    from luthier.data.formats import recognise_any, to_records
    from luthier.data.formats.message_trees import iter_whole_rows
    from luthier.data.reading import called
    from luthier.recipe.known_objectives import objective_of
    from luthier.recipe.reference import commented_recipe
    from luthier.store.files import write_text
    from luthier.store.places import expanded

    recipe = Path(called(data) + ".yaml") if out is None else expanded(out)
    if recipe.exists() and not force:
        raise UsageError(f"{recipe} is there already.", "Choose another name with --out, or replace it with --force.")
    rows = list(iter_whole_rows(data, say))
    kind = objective or _natural_kind(recognise_any(rows))
    recognised = to_records(rows, "auto", objective_of(kind, "--objective").takes)
    for note in recognised.notes:
        say(note)
    opening = _OPENING.format(
        count=len(recognised.records), form=recognised.name, data=data, reason=recognised.reason, recipe=quoted(recipe)
    )
    write_text(recipe, commented_recipe(model, _seen_from(recipe, data), opening, kind))
    found = f"{len(recognised.records)} rows of the form {recognised.name} ({recognised.reason})."
    say(f"{found}\nNext: luthier check {quoted(recipe)}")
    document = {
        "recipe": str(recipe),
        "format": recognised.name,
        "reason": recognised.reason,
        "rows": len(recognised.records),
        "objective": kind,
    }
    emit(document, str(recipe), as_json)


def _natural_kind(natural: Natural) -> str:
    """The kind of objective that rows are made for."""
    return "clm" if natural.name == "text" else natural.objective


def _seen_from(recipe: Path, data: str) -> str:
    """The data's path as the recipe should have it: relative where it lies beside or below, else absolute."""
    from luthier.store.places import expanded

    path = expanded(data)
    if not path.exists():  # a hub name
        return data
    relative = os.path.relpath(path, recipe.parent)
    return str(path.absolute()) if relative.startswith("..") else relative
