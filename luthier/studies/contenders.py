"""What a comparison compares: methods with their settings, each under a name.

They are named by their kinds alone, or written out in a YAML file, for settings that have no default, and for several
settings of one method:

    lora:                                    # by its kind, with its defaults
    lora-64:                                 # under a name of its own
      method: {kind: lora, rank: 64}
      training: {peak_lr: 1e-3}
      seeds: 3
    warp:
      method: {classes: [yes, no]}           # the kind is the name's, where none is given
    loftq:
      quantization: {kind: nf4}              # of the base that it is trained over, and compared with

Data and budget are the recipe's, and so the same for all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import RecipeError, UsageError
from luthier.methods import kind_of
from luthier.recipe import Recipe
from luthier.recipe.known_methods import KNOWN_METHODS
from luthier.recipe.loading import read_yaml, with_parts
from luthier.recipe.yaml_text import Parsed, Source

_BLOCKS = ("method", "training", "quantization")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Contender:
    """The recipe of one method, and how many seeds it is trained with, from the recipe's own on."""

    name: str
    recipe: Recipe
    seeds: int

    @property
    def kind(self) -> str:
        """The method's kind."""
        return self.recipe.method.kind


def contenders_of_kinds(recipe: Recipe, kinds: Sequence[str], seeds: int = 1) -> list[Contender]:
    """Methods by their kinds: the recipe's own keeps its settings and rate, the others have their defaults.

    Raises: UsageError for a kind that does not exist, is named twice, or needs settings.
    """
    known = [kind_of(method) for method in KNOWN_METHODS]
    for kind in kinds:
        if kind not in known:
            raise UsageError(f"There is no method {kind!r}.", f"Choose among: {', '.join(known)}.")
    if not kinds or len(set(kinds)) < len(kinds):
        raise UsageError("Each method is to be named once.", f"Choose among: {', '.join(known)}.")
    found = []
    for kind in kinds:
        try:
            parts = Parsed(_parts(recipe, kind, {}), {(): Source(None)})
            found.append(Contender(kind, with_parts(recipe, parts, Path.cwd()), seeds))
        except RecipeError as error:
            raise UsageError(
                f"The method {kind!r} needs settings: {error.found}",
                f"Write them into a YAML file, '{kind}: {{method: {{...}}}}', and name that file instead.",
            ) from error
    return found


def contenders_of_all(recipe: Recipe, seeds: int = 1) -> tuple[list[Contender], list[str]]:
    """Every method that does with its defaults, and the kinds of those that do not."""
    found, left_out = [], []
    for kind in map(kind_of, KNOWN_METHODS):
        try:
            found += contenders_of_kinds(recipe, [kind], seeds)
        except UsageError:
            left_out.append(kind)
    return found, left_out


def read_contenders(recipe: Recipe, path: Path, seeds: int = 1) -> list[Contender]:
    """The methods that a YAML file names. seeds: of those that do not say how many.

    Raises: NotFound without the file; RecipeError, naming line and field, for anything wrong in it.
    """
    parsed = read_yaml(path)
    if not isinstance(parsed.values, dict) or not parsed.values:
        raise RecipeError(
            "A file of methods is a mapping of names to settings.",
            "The shortest one is 'lora:', a method by its kind.",
            file=str(path),
        )
    return [_read(recipe, name, parsed, path, seeds) for name in parsed.values]


def _read(recipe: Recipe, name: Any, parsed: Parsed, path: Path, seeds: int) -> Contender:
    entry = {} if parsed.values[name] is None else parsed.values[name]
    source = parsed.source_of((name,))
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        mend = "Use letters, digits, '-', '_' and '.': it becomes the name of a folder."
        raise _fault(f"{name!r} is no name for a method.", mend, source, str(name))
    _check_entry(name, entry, parsed)
    places = {keys[1:]: place for keys, place in parsed.sources.items() if keys[:1] == (name,) and len(keys) > 1}
    parts = Parsed(_parts(recipe, name, entry), {(): source, **places})
    return Contender(name, with_parts(recipe, parts, path.absolute().parent), entry.get("seeds", seeds))


def _parts(recipe: Recipe, name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """What an entry changes in the recipe, whose own method keeps its settings and rate if it is named by its kind."""
    base = {"quantization": entry["quantization"]} if "quantization" in entry else {}
    if "method" not in entry and name == recipe.method.kind:
        return {"training": entry.get("training", {}), **base}
    method = {"kind": name, **entry.get("method", {})}
    return {"method": method, "training": {"peak_lr": None, **entry.get("training", {})}, **base}


def _check_entry(name: str, entry: Any, parsed: Parsed) -> None:
    """Raise RecipeError unless an entry has the form that the head of this file shows."""
    if not isinstance(entry, dict):
        raise _fault(
            "This is no mapping.", f"Give {', '.join(_BLOCKS)}, seeds, or nothing.", parsed.source_of((name,)), name
        )
    for block in _BLOCKS:
        if block in entry and not isinstance(entry[block], dict):
            where = parsed.source_of((name, block))
            raise _fault("This is no mapping.", "Give the recipe's fields.", where, f"{name}.{block}")
    for keys in _unknown(entry):
        raise _fault(
            "Only the method, its base's quantization, training.peak_lr and seeds may differ: the rest is the same for all.",
            "Put it into the recipe.",
            parsed.source_of((name, *keys)),
            ".".join((name, *map(str, keys))),
        )
    seeds = entry.get("seeds", 1)
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        where = parsed.source_of((name, "seeds"))
        raise _fault(f"{seeds!r} is no number of seeds.", "Give a whole number from 1.", where, f"{name}.seeds")


def _unknown(entry: Mapping[Any, Any]) -> Iterator[tuple[Any, ...]]:
    yield from ((key,) for key in entry if key not in (*_BLOCKS, "seeds"))
    yield from (("training", key) for key in entry.get("training", {}) if key != "peak_lr")


def _fault(found: str, mend: str, source: Source, field: str) -> RecipeError:
    return RecipeError(found, mend, file=source.file, line=source.line, field=field)
