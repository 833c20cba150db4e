"""`luthier schema`: what a recipe may hold, for editors and for the documentation."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.cli.options import Json
from luthier.cli.output import emit


def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/recipe.md instead.")] = False,
    as_json: Json = False,
) -> None:
    """Print the JSON schema of a recipe, for editors that complete and check as you type."""
    if markdown:
        from luthier.recipe.reference import recipe_page

        page = recipe_page()
        emit({"markdown": page}, page, as_json)
    else:
        from luthier.recipe import json_schema

        emit(json_schema(), "", as_json=True)
