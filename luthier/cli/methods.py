"""`luthier methods`: every way to tune that there is, and what can be set of each."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from luthier.cli.options import Json
from luthier.cli.output import aligned, emit
from luthier.errors import UsageError


def methods(
    name: Annotated[str | None, typer.Argument(help="Show this method with its settings.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/methods.md instead.")] = False,
    as_json: Json = False,
) -> None:
    """List the fine-tuning methods, or show one with its settings, formula, learning rate and paper."""
    from luthier.methods import kind_of
    from luthier.recipe.method_table import method_document, method_row, methods_in_order, methods_page

    if markdown:
        emit({"markdown": methods_page()}, methods_page(), as_json)
        return
    known = {kind_of(method): method for method in methods_in_order()}
    if name is None:
        rows = [method_row(method) for method in known.values()]
        emit({"methods": rows}, "\n".join(_table(rows)), as_json)
        return
    if name not in known:
        raise UsageError(f"There is no method {name!r}.", _nearest(name, list(known)))
    document = method_document(known[name])
    emit(document, "\n".join(_page(document)), as_json)


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name.lower().replace("_", "-"), known, n=1, cutoff=0.5)
    meant = f"Did you mean {close[0]}? " if close else ""
    return f"{meant}The methods are {', '.join(known)}."


def _table(rows: list[dict[str, Any]]) -> list[str]:
    head = ("method", "family", "merges", "deep backward", "over 4 bits", "starts as base", "learning rate", "trains")
    return aligned([head, *((row["kind"], row["family"], *_facts(row), row["trains"]) for row in rows)])


def _facts(row: dict[str, Any]) -> tuple[str, ...]:
    from luthier.recipe.method_table import rate_text, yes_or_no

    facts = (row["merges"], row["deep_backward"], row["over_4bit"], row["identity_at_start"])
    return (*map(yes_or_no, facts), rate_text(row["default_lr"]))


def _page(document: dict[str, Any]) -> Iterator[str]:
    merges, deep, quantized, identity, rate = _facts(document)
    yield f"{document['kind']} ({document['family']})\n"
    yield document["description"] + "\n"
    yield from aligned(
        [
            ("paper", document["paper"]),
            ("trainable numbers", document["count"]),
            ("learning rate", rate),
            ("merges", merges),
            ("deep backward", deep),
            ("over 4 bits", quantized),
            ("starts as the base", identity),
        ]
    )
    yield "\nsettings, as fields of method:\n"
    for setting in document["settings"]:
        yield f"{setting['name']}: {setting['type']}; left out: {setting['default']}"
        yield f"    {setting['description']}"
