"""What may stand in a recipe, read from the settings themselves: used by error messages, the docs and `luthier new`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from luthier.types import Settings


@dataclass(frozen=True)
class Place:
    """A field of the recipe: its dotted name, the settings that it belongs to, and its declaration."""

    name: str
    owner: type[Settings]
    info: FieldInfo

    @property
    def choices(self) -> tuple[type[Settings], ...]:
        """The settings that the field may hold; none for a plain value."""
        return settings_in(self.info.annotation)

    @property
    def items(self) -> tuple[type[Settings], ...]:
        """The settings that the items of the field's list may be; none if it is no list of settings."""
        annotation = self.info.annotation
        types = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
        lists = [each for each in types if get_origin(each) in (tuple, list)]
        return tuple(model for each in lists for model in settings_in(get_args(each)[0]))

    @property
    def meaning(self) -> str:
        """The field's description; where it has none, what its settings say of themselves."""
        if self.info.description:
            return self.info.description
        says = [(choice.__doc__ or "").strip().splitlines()[0] for choice in self.choices]
        return says[0] if says else ""


def settings_in(annotation: Any) -> tuple[type[Settings], ...]:
    """The settings classes that a type names, through unions and annotations."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return (annotation,)
    if get_origin(annotation) is Annotated:
        return settings_in(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return tuple(model for part in get_args(annotation) for model in settings_in(part))
    return ()


def kind_of(model: type[Settings]) -> str | None:
    """The `kind` that selects these settings among their neighbours, or None."""
    info = model.model_fields.get("kind")
    choices = () if info is None else get_args(info.annotation)
    return str(choices[0]) if len(choices) == 1 else None


def fields_of(model: type[Settings], prefix: str = "") -> tuple[Place, ...]:
    """The fields of one settings class under the names that a recipe uses: `kind`, its own, then those of its bases."""
    lines = [base for base in model.__mro__ if issubclass(base, Settings)]
    depth = {name: line for line, base in enumerate(lines) for name in base.model_fields}  # where it is first declared
    named = sorted(model.model_fields.items(), key=lambda item: (item[0] != "kind", depth[item[0]]))
    return tuple(Place(prefix + (info.alias or name), model, info) for name, info in named)


def all_fields(model: type[Settings], prefix: str = "") -> Iterator[Place]:
    """Every field under a settings class, outer before inner."""
    for place in fields_of(model, prefix):
        yield place
        for choice in place.choices:
            yield from all_fields(choice, f"{place.name}.")


def places_at(root: type[Settings], path: tuple[str | int, ...], values: Any) -> tuple[Place, ...]:
    """The fields allowed directly under `path`, given what the recipe says there: its `kind` chooses among unions."""
    models: tuple[type[Settings], ...] = (root,)
    prefix = ""
    for part in path:
        if isinstance(part, int):  # an item of a list, which is what the list's items are
            values = values[part] if isinstance(values, list) and part < len(values) else None
        else:
            values = values.get(part) if isinstance(values, Mapping) else None
            found = [place for model in models for place in fields_of(model, prefix) if place.name == f"{prefix}{part}"]
            models = tuple(choice for place in found for choice in (*place.choices, *place.items))
        kind = values.get("kind", values.get("type")) if isinstance(values, Mapping) else None
        models = tuple(model for model in models if kind_of(model) == kind) or models
        prefix = f"{prefix}{part}."
    return tuple(place for model in models for place in fields_of(model, prefix))


def type_text(annotation: Any) -> str:
    """A type in words: `number`, `text or list of text`, `auto, cpu`."""
    if annotation is None or annotation is type(None):
        return "null"
    if annotation is Any:
        return "anything"
    plain = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    if annotation in plain:
        return plain[annotation]
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    if get_origin(annotation) is Annotated:
        return type_text(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(dict.fromkeys(type_text(part) for part in get_args(annotation)))
    if get_origin(annotation) in (tuple, list, frozenset):
        return f"list of {type_text(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        return f"mapping of {type_text(get_args(annotation)[0])} to {type_text(get_args(annotation)[1])}"
    return "settings" if settings_in(annotation) else str(annotation)
