"""Where the files that a recipe names are: beside the recipe, or in the working folder."""

from __future__ import annotations

import difflib
import glob
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from luthier.data.hub import is_hub_name
from luthier.data.named_templates import is_name
from luthier.data.reading import fits, is_pattern
from luthier.data.settings import DataSource, Sources
from luthier.errors import NotFound
from luthier.methods import AdapterMethod
from luthier.models.builtin import BUILTIN_NAMES
from luthier.recipe.settings import Recipe
from luthier.recipe.yaml_text import Parsed, Source, dotted
from luthier.store.places import expanded
from luthier.training.settings import TrainingSettings


def with_absolute_paths(recipe: Recipe, folder: Path, parsed: Parsed) -> Recipe:
    """The recipe with the paths in it absolute, so that a resumed run finds the same files from anywhere.

    A relative path is looked for in `folder` (where the recipe is), then in the working folder. A run's own recipe is
    handed back as it is: it went through here when the run began, and using its model needs no data.
    Raises: NotFound, for data that is in neither and is no hub name either.
    """
    if recipe.provenance is not None:
        return recipe

    def data_path(name: str, *keys: str | int) -> str:
        found = _find(name, folder) or _find_pattern(name, folder)
        if found is None and not is_hub_name(name):
            raise _missing(name, folder, parsed.source_of(keys), dotted(keys))
        return found or name

    data = recipe.data

    def source_path(each: str | DataSource, *keys: str | int) -> str | DataSource:
        if isinstance(each, str):
            return data_path(each, *keys)
        if isinstance(each.path, str):
            return each.model_copy(update={"path": data_path(each.path, *keys, "path")})
        paths = tuple(data_path(name, *keys, "path", index) for index, name in enumerate(each.path))
        return each.model_copy(update={"path": paths})

    def absolute(named: Sources, field: str) -> Sources:
        if isinstance(named, str):
            return data_path(named, "data", field)
        return tuple(source_path(each, "data", field, index) for index, each in enumerate(named))

    train, held_out = absolute(data.train, "train"), data.validation
    validation = held_out if held_out in ("auto", "none") else absolute(held_out, "validation")
    template = data.chat_template
    if template is not None and "{" not in template and not is_name(template):
        template = _find(template, folder) or template
    model = recipe.model
    if model.config is not None:
        places = {
            key: _found(value, folder) for key, value in (("config", model.config), ("tokenizer", model.tokenizer))
        }
        model = model.model_copy(update=places)
    elif model.name not in BUILTIN_NAMES:
        model = model.model_copy(update={"name": _find(model.name, folder) or model.name})
    method = recipe.method
    if isinstance(method, AdapterMethod):
        method = method.with_paths(lambda path: _find(path, folder) or path)
    objective = recipe.objective.with_paths(finder(folder))
    training = _with_graders_found(recipe.training, folder, parsed)
    data = data.model_copy(update={"train": train, "validation": validation, "chat_template": template})
    parts = {"data": data, "model": model, "method": method, "objective": objective, "training": training}
    return recipe.model_copy(update=parts)


def _with_graders_found(training: TrainingSettings, folder: Path, parsed: Parsed) -> TrainingSettings:
    """The same with the files of graders where they are. Raises: NotFound."""
    asked = training.evaluate_generated
    if asked is None or not asked.graders:
        return training
    keys = ("training", "evaluate_generated", "graders")
    found = [_find(name, folder) for name in asked.graders]
    for index, (name, path) in enumerate(zip(asked.graders, found, strict=True)):
        if path is None:
            raise _missing(name, folder, parsed.source_of((*keys, index)), dotted((*keys, index)))
    return training.model_copy(update={"evaluate_generated": asked.model_copy(update={"graders": tuple(found)})})


def finder(folder: Path) -> Callable[[str], str]:
    """What gives the absolute path of what is named, in a folder or the working one; a name of something else stays as it is."""
    return lambda name: name if name in BUILTIN_NAMES else _find(name, folder) or name


def _find(name: str, folder: Path) -> str | None:
    """The absolute path of what a recipe names, or None where nothing is there."""
    for base in (folder, Path.cwd()):
        path = base / expanded(name)
        if len(name) < 4096 and path.exists():
            return str(path.absolute())
    return None


def _find_pattern(name: str, folder: Path) -> str | None:
    """The absolute form of a pattern such as data/*.jsonl, or None where no file fits it."""
    for base in (folder, Path.cwd()):
        pattern = os.path.join(glob.escape(str(base.absolute())), expanded(name))
        if is_pattern(pattern) and fits(pattern):
            return pattern
    return None


def _found(value: Any, folder: Path) -> Any:
    """The absolute path of what is one; anything else as it is."""
    return _find(value, folder) or value if isinstance(value, str) else value


def _missing(name: str, folder: Path, source: Source, field: str) -> NotFound:
    path = expanded(name)
    if path.is_absolute():
        found = f"There is no file {path}."
    elif folder == Path.cwd():
        found = f"There is no file {name} in {folder}."
    else:
        found = f"There is no file {name}, neither in {folder} (the recipe's folder) nor in {Path.cwd()} (the working folder)."
    parents = {(base / path).parent for base in (folder, Path.cwd())}
    near = [entry.name for parent in parents if parent.is_dir() for entry in parent.iterdir()]
    close = difflib.get_close_matches(path.name, near, n=1)
    mend = f"Did you mean {path.with_name(close[0])}?" if close else "Correct the path, or put the file there."
    return NotFound(found, mend, file=source.file, line=source.line, field=field)
