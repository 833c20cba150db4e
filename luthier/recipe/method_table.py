"""All methods as a table, and each with its settings, read from the code: for `luthier methods` and docs/methods.md."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, get_args

from luthier.methods import Kin, Method, kind_of
from luthier.recipe.fields import fields_of
from luthier.recipe.known_methods import KNOWN_METHODS
from luthier.recipe.reference import cell, default_of, type_of

_OPENING = """# Methods

<!-- Made by `make docs` from the methods' own code and, at the end, from what was measured; a test holds them together. -->

A recipe chooses one with `method: {kind: ...}`. `luthier methods` prints this table, `luthier methods NAME` one method with
its settings, which are also in [recipe.md](recipe.md).

- **merges**: whether what it learned can be folded into the base, so that the tuned model costs nothing more to run.
- **deep backward**: whether training goes back through the frozen layers, down to the lowest one that is adapted.
- **over 4 bits**: whether it trains beside a base that is held in 4 bits.
- **starts as the base**: whether the model before the first step is the base model exactly.
- **learning rate**: the peak where a recipe gives none.
"""


def methods_in_order() -> tuple[type[Method], ...]:
    """All methods, family by family, in a family by their names."""
    families = get_args(Kin)
    return tuple(sorted(KNOWN_METHODS, key=lambda method: (families.index(method.family), kind_of(method))))


def method_row(method: type[Method]) -> dict[str, Any]:
    """What the table says of a method."""
    return {
        "kind": kind_of(method),
        "family": method.family,
        "trains": _first_line(method.__doc__),
        "merges": method.traits.merges,
        "deep_backward": method.traits.deep_backward,
        "over_4bit": method.traits.over_4bit,
        "identity_at_start": method.traits.identity_at_start,
        "default_lr": method.default_lr,
        "count": method.count,
        "paper": method.paper,
    }


def method_document(method: type[Method]) -> dict[str, Any]:
    """All that the code says of a method: its row, its formulas in plain text, and its settings."""
    settings = [
        {
            "name": place.name,
            "type": type_of(place.info).replace("`", ""),
            "default": default_of(place.info).replace("`", ""),
            "description": place.meaning,
        }
        for place in fields_of(method)
        if place.name != "kind"
    ]
    return {**method_row(method), "description": description(method), "settings": settings}


def description(method: type[Method]) -> str:
    """What the method's file says at its head: the idea, the paper, the formulas."""
    return (sys.modules[method.__module__].__doc__ or "").strip()


def rate_text(rate: float) -> str:
    """A learning rate as people write it: 2e-4."""
    digits, exponent = f"{rate:e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def yes_or_no(value: bool) -> str:
    """A fact in a table."""
    return "yes" if value else "no"


def methods_page() -> str:
    """The Markdown page of all methods."""
    return "\n".join([_OPENING, *_table(), "", *_sections()]).rstrip()


def _table() -> Iterator[str]:
    yield "| kind | trains | merges | deep backward | over 4 bits | starts as the base | learning rate |"
    yield "|---|---|---|---|---|---|---|"
    for method in methods_in_order():
        row = method_row(method)
        facts = (row["merges"], row["deep_backward"], row["over_4bit"], row["identity_at_start"])
        cells = (f"`{row['kind']}`", cell(row["trains"]), *map(yes_or_no, facts), rate_text(row["default_lr"]))
        yield f"| {' | '.join(cells)} |"


def _sections() -> Iterator[str]:
    family = ""
    for method in methods_in_order():
        if method.family != family:
            family = method.family
            yield f"## {family.replace('-', ' ').capitalize()}\n"
        yield f"### `{kind_of(method)}`\n"
        yield f"```text\n{description(method)}\n```\n"


def _first_line(text: str | None) -> str:
    return (text or "").strip().splitlines()[0]
