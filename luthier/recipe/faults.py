"""What pydantic found wrong, said again with the recipe's own names, the line, and the mend."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from luthier.errors import RecipeError
from luthier.recipe.fields import Place, all_fields, kind_of, places_at
from luthier.recipe.yaml_text import Parsed, Path, dotted
from luthier.types import Settings

_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping of keys to values",
    "literal_error": "{expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
}

# What other tools call the same thing.
_ALSO_CALLED = {
    "base_model": "model",
    "batch_size": "training.rows_per_step",
    "dataset": "data.train",
    "learning_rate": "training.peak_lr",
    "lora_alpha": "method.alpha",
    "lora_r": "method.rank",
    "lr": "training.peak_lr",
    "max_seq_length": "data.max_length",
    "max_steps": "training.steps",
    "model_name": "model.name",
    "num_epochs": "training.epochs",
    "num_train_epochs": "training.epochs",
    "r": "method.rank",
    "target_modules": "method.targets",
    "task": "objective.kind",
}


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a recipe."""

    path: Path
    found: str
    mend: str


def recipe_error(error: ValidationError, root: type[Settings], parsed: Parsed) -> RecipeError:
    """All faults of a recipe as one error: the first in the file leads, the others follow, a line each."""
    faults = _faults(error.errors(include_url=False), root, parsed.values)
    faults.sort(key=lambda fault: parsed.source_of(fault.path).line or 0)
    first, *others = faults
    mend = first.mend
    for fault in others:
        line = parsed.source_of(fault.path).line
        place = f"field {dotted(fault.path)!r}" if line is None else f"line {line}, field {dotted(fault.path)!r}"
        mend += f"\n  also {place}: {fault.found} {fault.mend}".rstrip()
    source = parsed.source_of(first.path)
    return RecipeError(first.found, mend, file=source.file, line=source.line, field=dotted(first.path) or None)


def _faults(errors: Sequence[ErrorDetails], root: type[Settings], values: Any) -> list[Fault]:
    by_path: dict[Path, list[ErrorDetails]] = {}
    for error in errors:
        by_path.setdefault(_path(error, root, values), []).append(error)
    # A union complains for each of its types; the complaint about an item says more than one about its list.
    inner = [path for path in by_path if not any(other[: len(path)] == path and other != path for other in by_path)]
    return [_fault(path, by_path[path], root, values) for path in inner]


def _path(error: ErrorDetails, root: type[Settings], values: Any) -> Path:
    """Where an error is, without the names that unions put into pydantic's location.

    A validator of our own names the field: from the recipe's top, or, where it belongs to an item of a list, from its own.
    """
    named = tuple(str(error.get("ctx", {}).get("field", "")).split("."))
    if named[0] in root.model_fields:
        return named
    path: Path = ()
    for index, part in enumerate(error["loc"]):
        is_last = index == len(error["loc"]) - 1
        if isinstance(values, Mapping) and (part in values or (is_last and error["type"] == "missing")):
            path, values = (*path, part), values.get(part)
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            path, values = (*path, part), values[part]
    return (*path, *named) if named != ("",) else path


def _fault(path: Path, errors: list[ErrorDetails], root: type[Settings], values: Any) -> Fault:
    error = errors[0]
    kind, context = error["type"], error.get("ctx", {})
    name = dotted(path)
    place = _declared(path, root, values)
    meaning = f"{name} means: {place.meaning}" if place is not None and place.meaning else ""
    if kind == "missing":
        return Fault(path, f"{name} is missing.", f"Add it. {meaning}".strip())
    if kind == "invalid_key":
        return Fault(path, "A key here is not text.", "Correct it; a number, yes, no, on, off or null is none of ours.")
    if kind == "extra_forbidden":
        return Fault(path, f"There is no field {name}.", _did_you_mean(path, root, values))
    if kind == "union_tag_invalid":
        tag, kinds = str(context["tag"]), [] if place is None else _kinds(place)
        return Fault((*path, "kind"), f"{name}.kind is {tag!r}.", f"Use {_or(kinds)}.{_closest(tag, kinds)}")
    expected = [_EXPECTED[each["type"]].format(**each.get("ctx", {})) for each in errors if each["type"] in _EXPECTED]
    if kind in ("model_type", "model_attributes_type"):
        fields = dict.fromkeys(_last(place.name) for place in places_at(root, path, values))
        expected = [f"a mapping with some of the fields {', '.join(fields)}"]
    if expected:
        wanted = _or(list(dict.fromkeys(expected)))
        return Fault(path, f"{name} is {_shown(error['input'])}.", f"Give {wanted}. {meaning}".strip())
    # A validator of our own: it says what it found and, after a semicolon, the mend.
    found, _, mend = str(context.get("error", error["msg"])).partition("; ")
    mend = mend[:1].upper() + mend[1:] if mend else meaning or "Correct it."
    return Fault(path, found if found.endswith(".") else found + ".", mend)


def _declared(path: Path, root: type[Settings], values: Any) -> Place | None:
    """The declaration of the field at a path; an item of a list has that of its list."""
    keys = tuple(part for part in path if isinstance(part, str))
    return next((place for place in places_at(root, keys[:-1], values) if place.name == ".".join(keys)), None)


def _kinds(place: Place) -> list[str]:
    return [kind for choice in (*place.choices, *place.items) if (kind := kind_of(choice)) is not None]


def _did_you_mean(path: Path, root: type[Settings], values: Any) -> str:
    name, full = str(path[-1]), dotted(path)
    siblings = list(dict.fromkeys(_last(place.name) for place in places_at(root, path[:-1], values)))
    close = difflib.get_close_matches(name, siblings, n=1, cutoff=0.6)
    if close:
        return f"Did you mean {close[0]}?"
    everywhere = list(all_fields(root))
    owners = [kind for place in everywhere if place.name == full and (kind := kind_of(place.owner))]
    if owners:
        return f"It belongs to kind {_or(owners)}. Fields here are {', '.join(siblings)}."
    called = _ALSO_CALLED.get(name.lower())
    meant = dict.fromkeys(place.name for place in everywhere if place.name == called or _last(place.name) == name)
    if meant:
        return f"Did you mean {_or(list(meant))}?"
    return f"Fields here are {', '.join(siblings)}."


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _closest(word: str, choices: list[str]) -> str:
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else ""


def _or(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _shown(value: Any) -> str:
    """A value as the recipe's text would have it, cut to a readable length."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
