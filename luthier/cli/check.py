"""`luthier check`: are the rows right, and which of their tokens would be learned?"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.options import Json, Overrides
from luthier.cli.output import emit, print_error, say
from luthier.errors import DataError

if TYPE_CHECKING:
    from luthier.data.gate import GateReport, MarkedRow
    from luthier.recipe import Recipe

_MOST_SHOWN = 20
_LEARNED, _END = "\x1b[1;32m", "\x1b[0m"


def check(
    what: Annotated[str, typer.Argument(metavar="FILE_OR_RECIPE", help="A recipe (.yaml), or a file of rows.")],
    model: Annotated[
        str | None, typer.Option("--model", help="The model whose tokenizer counts; unset: the recipe's.")
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Look rows through and show which tokens would be learned; ends with exit code 3 if something is wrong."""
    from luthier.recipe import load_recipe, make_recipe

    changes = [*(overrides or ()), *([f"model.name={json.dumps(model)}"] if model is not None else ())]
    if Path(what).suffix in (".yaml", ".yml"):
        recipe = load_recipe(what, changes)
    else:
        recipe = make_recipe({"model": "smollm2-135m", "data": {"train": what}}, changes)
    report_recipe(recipe, as_json)


def report_recipe(recipe: Recipe, as_json: bool) -> None:
    """Print what the gate says of a recipe's rows. Raises typer.Exit(3), after printing them, for faults in the rows."""
    from luthier.prepared import check_recipe

    try:
        report = check_recipe(recipe, say).gate
    except DataError as error:
        faults = _all_faults(recipe, error)
        if as_json:
            told = [fault.as_json()["error"] for fault in faults]
            emit({"ok": False, "error": told[0], "faults": told}, "", as_json=True)
        else:
            for fault in faults[:_MOST_SHOWN]:
                print_error(fault, as_json=False)
            if len(faults) > _MOST_SHOWN:
                say(f"... and {len(faults) - _MOST_SHOWN} more; --json gives them all.")
        raise typer.Exit(error.exit_code) from error
    emit(_document(report), _text(report), as_json)


def _all_faults(recipe: Recipe, first: DataError) -> list[DataError]:
    """Every row at fault, where it is the rows themselves that cannot be read; else the error alone."""
    from luthier.data.formats import faults
    from luthier.data.reading import read_rows

    try:
        rows = read_rows(recipe.data.train, lambda text: None, recipe.data.max_rows)
    except DataError:
        return [first]
    return faults(rows, recipe.data.format, recipe.objective.takes, recipe.data.wishes) or [first]


def _document(report: GateReport) -> dict[str, Any]:
    rows = [
        {
            "file": row.origin.file,
            "line": row.origin.line,
            "tokens": row.num_tokens,
            "learned_tokens": row.num_learned,
            "pieces": [{"text": text, "learned": is_learned} for text, is_learned in row.pieces],
        }
        for row in report.rows
    ]
    return {
        "ok": True,
        "rows": report.num_rows,
        "held_out_rows": report.num_held_out,
        "tokens": report.num_tokens,
        "learned_tokens": report.num_learned,
        "longest_row": report.longest_row,
        "mean_row": report.mean_row,
        "classes": dict(report.classes),
        "notes": list(report.notes),
        "shown": rows,
    }


def _text(report: GateReport) -> str:
    colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    lines = [f"What is learned is {'green' if colours else 'between ⟦ and ⟧'}:"]
    for row in report.rows:
        lines += ["", f"{row.origin}: {row.num_tokens} tokens, {row.num_learned} learned", _marked(row, colours)]
    lines += [
        "",
        f"{report.num_rows:,} rows to train on, {report.num_held_out:,} held out.",
        _learned(report),
        f"Rows have {report.mean_row:.0f} tokens on average, {report.longest_row:,} at most.",
        *report.notes,
        "The gate is passed.",
    ]
    return "\n".join(lines)


def _learned(report: GateReport) -> str:
    if report.classes:
        return (
            f"{report.num_tokens:,} tokens; labels: {', '.join(f'{name} {count:,}' for name, count in report.classes)}."
        )
    share = 100 * report.num_learned / max(1, report.num_tokens)
    return f"{report.num_tokens:,} tokens, {report.num_learned:,} of them learned ({share:.0f} %)."


def _marked(row: MarkedRow, colours: bool) -> str:
    from luthier.data.gate import marked_text

    if not colours:
        return marked_text(row)
    return "".join(f"{_LEARNED}{text}{_END}" if is_learned else text for text, is_learned in row.pieces)
