"""What the gate says of a recipe's rows, printed: all of `luthier train --dry-run`, and the second half of `luthier check`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import typer

from luthier.cli.output import emit, print_error, say
from luthier.errors import DataError

if TYPE_CHECKING:
    from luthier.data.gate import GateReport
    from luthier.data.marked import MarkedRow
    from luthier.recipe import Recipe

_MOST_SHOWN = 20
_LEARNED, _END = "\x1b[1;32m", "\x1b[0m"


def report_gate(recipe: Recipe, as_json: bool) -> None:
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
    emit(document_of(report), text_of(report), as_json)


def _all_faults(recipe: Recipe, first: DataError) -> list[DataError]:
    """Every line and row at fault, where it is the rows themselves that cannot be read; else the error alone."""
    from luthier.data.formats import faults
    from luthier.data.formats.message_trees import iter_whole_rows
    from luthier.data.settings import sources_of

    found: list[DataError] = []
    for source in sources_of(recipe.data.train):
        form, wishes = recipe.data.form_of(source)
        limit = recipe.data.max_rows
        try:
            rows = list(
                iter_whole_rows(source.path, lambda text: None, limit, found.append, format=form, wishes=wishes)
            )
        except DataError:
            return [first]
        found += faults(rows, form, recipe.objective.takes, wishes) if rows else []
    return sorted(found, key=lambda fault: (fault.file or "", fault.line or 0)) or [first]


def document_of(report: GateReport) -> dict[str, Any]:
    """What the gate says, as `--json` prints it."""
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


def text_of(report: GateReport) -> str:
    """What the gate says, with the rows that it shows."""
    colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    lines = [f"What is learned is {'green' if colours else 'between ⟦ and ⟧'}:"]
    for row in report.rows:
        lines += [
            "",
            f"{row.origin}: {row.num_tokens} tokens, {row.num_learned} {'answers' if report.ranks else 'learned'}",
            _marked(row, colours),
        ]
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
    if report.ranks:
        return f"{report.num_tokens:,} tokens, {report.num_learned:,} ranked answers."
    share = 100 * report.num_learned / max(1, report.num_tokens)
    return f"{report.num_tokens:,} tokens, {report.num_learned:,} of them learned ({share:.0f} %)."


def _marked(row: MarkedRow, colours: bool) -> str:
    from luthier.data.marked import marked_text

    if not colours:
        return marked_text(row)
    return "".join(f"{_LEARNED}{text}{_END}" if is_learned else text for text, is_learned in row.pieces)
