"""Recipes read, checked and written: from a file or from plain values, with overrides from the command line."""

from __future__ import annotations

import difflib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from luthier.errors import NotFound, RecipeError, UsageError
from luthier.methods import AdapterMethod, kind_of
from luthier.objectives import Reward
from luthier.recipe.faults import recipe_error
from luthier.recipe.known_methods import KNOWN_METHODS
from luthier.recipe.paths import with_absolute_paths
from luthier.recipe.settings import Recipe
from luthier.recipe.yaml_text import Parsed, Source, parse_yaml, to_yaml
from luthier.recipe.yaml_text import Path as Keys
from luthier.store.places import expanded
from luthier.store.runs import RECIPE, RESOLVED
from luthier.version import __version__

SHORTEST = "The shortest recipe is two lines: 'model: smollm2-135m' and 'data: {train: rows.jsonl}'."


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, with `key=value` overrides applied; paths in it are absolute.

    Raises: NotFound, for a recipe or data file that is not there; RecipeError, naming the line or the field, for
    anything wrong in it.
    """
    path = expanded(path)
    parsed = read_yaml(path)
    if not isinstance(parsed.values, dict):
        raise RecipeError("A recipe is a mapping of keys to values.", SHORTEST, file=str(path))
    return _recipe_of(parsed, overrides, path.absolute().parent)


def recipe_of_run(folder: Path) -> Recipe:
    """The recipe of a run, settled where the run got so far.

    Raises as `load_recipe`; of a run that another version made, the error says so.
    """
    path = folder / (RESOLVED if (folder / RESOLVED).is_file() else RECIPE)
    try:
        return load_recipe(path)
    except RecipeError as error:
        made = _version_in(path)
        if made is not None and made != __version__:
            error.mend = (
                f"{error.mend} The run was made by luthier {made}, and this is {__version__}: install that version."
            )
        raise


def recipe_of_reward_model(folder: Path) -> Recipe:
    """The recipe of a run that trained a reward model. Raises as `recipe_of_run`; UsageError for a run that learned anything else."""
    recipe = recipe_of_run(folder)
    if not isinstance(recipe.objective, Reward):
        raise UsageError(
            f"The run {folder} is no reward model: its objective is {recipe.objective.kind}.",
            "Name a run with objective.kind reward.",
        )
    return recipe


def _version_in(path: Path) -> str | None:
    """Which version a run's recipe says that it was made by."""
    values = read_yaml(path).values
    provenance = values.get("provenance") if isinstance(values, dict) else None
    made = provenance.get("luthier") if isinstance(provenance, dict) else None
    return made if isinstance(made, str) else None


def read_yaml(path: Path) -> Parsed:
    """The values of a recipe's file, or of another in its manner. Raises: NotFound, RecipeError."""
    return parse_yaml(_text_of(path), str(path))


def make_recipe(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from plain values, as `load_recipe` would make it from a file in the working folder."""
    try:
        plain = json.loads(json.dumps(values, default=_plain))
    except (TypeError, ValueError) as error:
        raise RecipeError(f"A recipe holds text, numbers, lists and mappings only: {error}.", SHORTEST) from error
    return _recipe_of(Parsed(plain, {(): Source(None)}), overrides, Path.cwd())


def recipe_from(values: Mapping[str, Any], folder: Path, *, finds_files: bool = True) -> Recipe:
    """A recipe from plain values that stand in a file of that folder.

    finds_files: whether its files are looked for; if not, only what no recipe may hold is told. Raises: as `load_recipe`.
    """
    parsed = Parsed(json.loads(json.dumps(values, default=_plain)), {(): Source(None)})
    return _recipe_of(parsed, (), folder) if finds_files else _validated(parsed)


def with_parts(recipe: Recipe, parts: Parsed, folder: Path) -> Recipe:
    """The recipe with the blocks of `parts` in place of its own; of `training`, with the fields that `parts` gives.

    Relative paths in them are looked for in `folder`. Raises: RecipeError, naming line and field, for what no recipe may
    hold.
    """
    own = values_of(recipe)
    values = {**own, **parts.values, "training": {**own["training"], **parts.values.get("training", {})}}
    return _recipe_of(Parsed(values, parts.sources), (), folder)


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, every field written out that does not contradict another; `load_recipe` reads it back."""
    return to_yaml(values_of(recipe))


def values_of(recipe: Recipe) -> dict[str, Any]:
    """The plain values that `dump_recipe` writes."""
    values = recipe.model_dump(mode="json", by_alias=True)
    if isinstance(recipe.method, AdapterMethod):
        values["method"] = recipe.method.as_recipe()
    return values


def json_schema() -> dict[str, Any]:
    """The JSON schema of a recipe, for editors.

    A method without its kind is lora, so every other must state its own: else several fit, and an editor finds fault.
    """
    schema = Recipe.model_json_schema(by_alias=True)
    for method in KNOWN_METHODS:
        if kind_of(method) != "lora":
            schema["$defs"][method.__name__].setdefault("required", []).append("kind")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _text_of(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        near = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, near, n=1)
        other = "Check the path; 'luthier new DATA' writes a recipe."
        mend = f"Did you mean {path.parent / close[0]}?" if close else other
        raise NotFound("There is no such recipe.", mend, file=str(path)) from None
    except NotADirectoryError:
        raise NotFound("There is no such recipe.", "Check the path.", file=str(path)) from None
    except IsADirectoryError:
        raise RecipeError("This is a folder.", "Give the recipe file itself.", file=str(path)) from None
    except OSError as error:
        raise RecipeError(
            f"It cannot be read: {error.strerror or error}.", "Check the path and its permissions.", file=str(path)
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError(
            "This is not UTF-8 text.", "A recipe is a YAML file; check the path.", file=str(path)
        ) from error
    if path.suffix in (".jsonl", ".csv", ".parquet"):
        name = shlex.quote(str(path))
        mend = f"'luthier new {name}' writes a recipe for it; 'luthier check {name}' looks through the rows."
        raise RecipeError("This is a data file, not a recipe.", mend, file=str(path))
    if not text.strip():
        raise RecipeError("The recipe is empty.", SHORTEST, file=str(path))
    return text


def _plain(value: object) -> str:
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    raise TypeError(f"{value!r} is a {type(value).__name__}")


def _recipe_of(parsed: Parsed, overrides: Sequence[str], folder: Path) -> Recipe:
    for text in overrides:
        parsed = _overridden(parsed, text)
    return with_absolute_paths(_validated(parsed), folder, parsed)


def _validated(parsed: Parsed) -> Recipe:
    try:
        return Recipe.model_validate(tuples_of(parsed.values), strict=True)
    except ValidationError as error:
        raise recipe_error(error, Recipe, parsed) from error


def tuples_of(value: Any) -> Any:
    """The value with its lists as tuples: what strict settings take."""
    if isinstance(value, dict):
        return {key: tuples_of(item) for key, item in value.items()}
    return tuple(tuples_of(item) for item in value) if isinstance(value, list) else value


def _overridden(parsed: Parsed, text: str) -> Parsed:
    """The values with one `key=value` applied; the blocks on the way to it are made where they are missing."""
    flag = f"--set {text}"
    key, equals, value = text.partition("=")
    path: Keys = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        raise RecipeError("This is not of the form key=value.", "For example: --set training.epochs=2.", file=flag)
    new = parse_yaml(value, flag).values

    def replaced(block: Any, rest: Keys) -> Any:
        if not rest:
            return new
        if isinstance(block, str) and path[0] == "model":
            block = {"name": block}  # a model given by its name alone
        inside = block if isinstance(block, dict) else {}
        return {**inside, rest[0]: replaced(inside.get(rest[0]), rest[1:])}

    kept = {place: source for place, source in parsed.sources.items() if place[: len(path)] != path}
    return Parsed(replaced(parsed.values, path), {**kept, path: Source(flag)})
