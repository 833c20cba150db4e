"""The recipe written out for people: the page of all fields, and a commented recipe to begin from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from luthier.objectives import kind_of as objective_kind
from luthier.recipe.fields import all_fields, fields_of, kind_of, places_at, type_text
from luthier.recipe.known_objectives import KNOWN_OBJECTIVES, objective_of
from luthier.recipe.settings import Recipe
from luthier.types import Settings

_OPENING = """# The recipe

<!-- Made from the settings by `make docs`; a test holds the two together. -->

A recipe is one YAML file. Everything but `model` and `data.train` has a default. Unknown keys are errors, and so are
keys given twice. `luthier train recipe.yaml --set training.epochs=1` changes a field for one run; `luthier schema` prints
the JSON schema, for editors that complete and check as you type.

```yaml
model: smollm2-135m
data: {train: tickets.jsonl}
```

Relative paths are looked for in the recipe's folder first, then in the working folder.
"""

# The fields that a first recipe shows; the page of all fields has the rest.
_SHOWN = (
    "model",
    "data.train",
    "data.validation",
    "data.max_length",
    "data.too_long",
    "data.learn",
    "method.kind",
    "method.rank",
    "method.targets",
    "objective.kind",
    "training.epochs",
    "training.rows_per_step",
    "training.tokens_per_micro_batch",
    "training.peak_lr",
    "seed",
)


def recipe_page() -> str:
    """The Markdown page of every field: what it means, what it may be, and what it is when left out."""
    return "\n".join([_OPENING, *_section("", Recipe), ""])


def commented_recipe(model: str, data: str, opening: str, objective: str = "sft") -> str:
    """A recipe for these rows, each field under a comment that says what it means; `opening` stands above it.

    What the objective must be told, such as its teacher, is left to be filled in.
    """
    fields = objective_of(objective).model_fields.items()
    asked = {name: _to_fill_in(name, field) for name, field in fields if field.is_required()}
    values = {"model": model, "data": {"train": data}, "objective": {"kind": objective, **asked}}
    defaults = Recipe.model_validate(values).model_dump(mode="json", by_alias=True)
    defaults["objective"] |= asked
    meanings = {place.name: place.meaning for place in all_fields(Recipe)}
    for block in ("method", "objective"):  # kinds that are not the default have fields of the same names
        meanings |= {place.name: place.meaning for place in places_at(Recipe, (block,), defaults)}
    meanings["method.kind"] = (
        "lora trains small added tensors; full trains the model's own weights; 'luthier methods' lists them all."
    )
    meanings["objective.kind"] = f"What is learned: {', '.join(objective_kind(each) for each in KNOWN_OBJECTIVES)}."
    defaults["model"] = model
    lines = [*(f"# {line}".rstrip() for line in opening.splitlines())]
    block = ""
    after = _SHOWN.index("objective.kind") + 1
    for name in (*_SHOWN[:after], *(f"objective.{field}" for field in asked), *_SHOWN[after:]):
        outer, _, key = name.rpartition(".")
        if outer != block or not outer:
            lines += ["", *([f"{outer}:"] if outer else [])]
            block = outer
        value: Any = defaults
        for part in name.split("."):
            value = value[part]
        indent = "  " if outer else ""
        lines += [f"{indent}# {meanings[name]}", f"{indent}{key}: {_yaml(value)}"]
    return "\n".join(lines) + "\n"


def _to_fill_in(name: str, field: FieldInfo) -> Any:
    """What stands for a field that must be given: an example of it, or a word that says so."""
    return field.examples[0] if field.examples else f"YOUR-{name.upper()}"


def _section(name: str, model: type[Settings]) -> Iterator[str]:
    if name:
        kind = kind_of(model)
        title = f"`{name}`" if kind is None else f"`{name}`: `kind: {kind}`"
        yield f"## {title}\n\n{(model.__doc__ or '').strip().splitlines()[0]}\n"
    prefix = f"{name}." if name else ""
    yield "| field | is | left out | meaning |\n|---|---|---|---|"
    for place in fields_of(model, prefix):
        info = place.info
        meaning = place.meaning or "Which of the choices this is."
        yield f"| `{place.name}` | {cell(type_of(info))} | {default_of(info)} | {cell(meaning)} |"
    yield ""
    for place in fields_of(model, prefix):
        for choice in place.choices:
            yield from _section(place.name, choice)


def type_of(info: FieldInfo) -> str:
    """What a field may be, in words, with its limits."""
    text = type_text(info.annotation)
    signs = {Gt: ">", Ge: "≥", Lt: "<", Le: "≤"}
    limits = []
    for limit in info.metadata:
        match limit:
            case Gt(gt=bound) | Ge(ge=bound) | Lt(lt=bound) | Le(le=bound):
                limits.append(f"{signs[type(limit)]} {_number(bound)}")
            case _:
                pass
    return f"{text}, {', '.join(limits)}" if limits else text


def _number(bound: object) -> str:
    return "2⁶³" if bound == 2**63 else str(bound)


def default_of(info: FieldInfo) -> str:
    """What a field is when a recipe leaves it out."""
    if info.default is PydanticUndefined:
        return "required"
    if isinstance(info.default, BaseModel):
        kind = info.default.model_dump().get("kind")
        return "its defaults" if kind is None else f"`kind: {kind}`"
    return f"`{_yaml(info.default)}`"


def _yaml(value: Any) -> str:
    if isinstance(value, tuple):
        value = list(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def cell(text: str) -> str:
    """Text as the cell of a Markdown table."""
    return text.replace("|", "\\|")
