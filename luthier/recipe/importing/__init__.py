"""Recipes of other tools made into ours: every setting is carried over, called needless, or named as lost."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import RecipeError
from luthier.recipe.importing import axolotl, llama_factory, openai_job, torchtune
from luthier.recipe.importing.taken import Taken
from luthier.recipe.loading import read_yaml
from luthier.recipe.yaml_text import to_yaml


@dataclass(frozen=True)
class Tool:
    """A tool whose recipes are read: its name, how they are told, and how they are converted."""

    name: str
    recognises: Callable[[Mapping[str, Any]], bool]
    convert: Callable[[Taken], None]


TOOLS = tuple(
    Tool(module.TOOL, module.recognises, module.convert) for module in (llama_factory, axolotl, torchtune, openai_job)
)


@dataclass(frozen=True)
class Imported:
    """Our recipe as plain values, and what became of the other's settings (see `Taken`)."""

    tool: str
    recipe: dict[str, Any]
    same: tuple[tuple[str, str], ...]
    needless: tuple[tuple[str, str], ...]
    lost: tuple[tuple[str, Any, str], ...]

    def as_yaml(self, file: str) -> str:
        """The recipe as text; what was lost stands above it."""
        opening = [f"# From {file}, a recipe of {self.tool}.", "#"]
        if self.lost:
            opening += [
                "# Without an equivalent:",
                *(f"#   {key}: {_short(value)} ({why})" for key, value, why in self.lost),
            ]
        else:
            opening.append("# Everything in it has an equivalent.")
        return "\n".join(opening) + "\n\n" + to_yaml(self.recipe)


def import_recipe(path: Path, data: str | None = None) -> Imported:
    """Another tool's recipe as ours.

    Args:
        data: training rows to write in the place of the file's own.

    Raises: NotFound; RecipeError for a file that no tool here has written.
    """
    values = read_yaml(path).values
    tool = next((tool for tool in TOOLS if isinstance(values, dict) and tool.recognises(values)), None)
    if tool is None:
        known = ", ".join(tool.name for tool in TOOLS)
        raise RecipeError("It is no recipe of a tool that is known.", f"Give one of: {known}.", file=str(path))
    taken = Taken(copy.deepcopy(values), path.absolute().parent)
    tool.convert(taken)
    taken.finish()
    if data is not None:
        taken.recipe.setdefault("data", {})["train"] = data
        taken.lost = [each for each in taken.lost if each[0].partition(".")[0] not in ("dataset", "training_file")]
    elif "train" not in taken.recipe.get("data", {}):
        raise RecipeError("It names no training rows.", "Name them with --data FILE.", file=str(path))
    return Imported(tool.name, taken.recipe, tuple(taken.same), tuple(taken.needless), tuple(taken.lost))


def _short(value: Any) -> str:
    text = str(value).replace("\n", " ")
    return text if len(text) <= 60 else f"{text[:57]}..."
