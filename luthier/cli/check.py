"""`luthier check`: are the rows right, and which of their tokens would be learned?

The data check finds faults in the rows, whatever they are for (`luthier.data.checks`); the gate then judges whether the
recipe's model would learn from them what it should, which is all that `luthier train --dry-run` asks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.gate import document_of, text_of
from luthier.cli.options import Json, Overrides
from luthier.cli.output import emit, print_error, say
from luthier.errors import (
    DataError,
    GateRefusal,
    LuthierError,
    NetworkError,
    NotFound,
    RecipeError,
    ResourceError,
    UsageError,
)

if TYPE_CHECKING:
    from luthier.data.checks.checking import Checked
    from luthier.data.checks.mending import Mended
    from luthier.data.checks.statistics import Tokens
    from luthier.data.gate import GateReport
    from luthier.recipe import Recipe
    from luthier.types import RowLengths

_MOST_SHOWN = 20
_ACROSS = "Of rows that ask the same, data.validation: auto never holds some out and trains on others; of near-duplicates it may."


def check(
    what: Annotated[str, typer.Argument(metavar="FILE_OR_RECIPE", help="A recipe (.yaml), or a file of rows.")],
    validation: Annotated[
        str | None, typer.Option("--validation", help="Rows held out, to be compared with; unset: the recipe's.")
    ] = None,
    fix: Annotated[
        Path | None,
        typer.Option("--fix", metavar="OUT", help="Write the rows here, without what can be mended safely."),
    ] = None,
    drop_faulty: Annotated[
        bool, typer.Option("--drop-faulty", help="With --fix: leave out rows with an error that cannot be mended.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="End with exit code 3 for warnings too.")] = False,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FOLDER", help="Write a page of statistics with a picture here.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The model whose tokenizer counts; unset: the recipe's.")
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Look rows through and show which tokens would be learned; ends with exit code 3 if something is wrong."""
    from luthier.data.checks.checking import check_sources
    from luthier.data.checks.form import ReadAs
    from luthier.data.checks.mending import write_mended
    from luthier.data.checks.statistics import write_report
    from luthier.data.settings import files_of, is_mixture, sources_of
    from luthier.recipe import load_recipe, make_recipe

    if drop_faulty and fix is None:
        raise UsageError("--drop-faulty goes with --fix.", "Name the file to write with --fix.")
    changes = [*(overrides or ()), *([f"model.name={json.dumps(model)}"] if model is not None else ())]
    is_recipe = Path(what).suffix in (".yaml", ".yml")
    if is_recipe:
        recipe = load_recipe(what, changes)
    else:
        recipe = make_recipe({"model": "smollm2-135m", "data": {"train": what}}, changes)
    settings = recipe.data
    if fix is not None and is_mixture(settings.train):
        raise UsageError("--fix writes the rows of one source.", "Check and mend the files of the mixture one by one.")
    held_out = validation or (settings.validation if settings.validation not in ("auto", "none") else None)
    is_chosen = is_recipe or any(change.startswith("objective") for change in changes)
    checked = check_sources(settings, held_out, say, recipe.objective.takes if is_chosen else None)
    read_as = ReadAs(*settings.form_of(sources_of(settings.train)[0]))
    mended = (
        None
        if fix is None
        else write_mended(files_of(settings.train), checked, fix, drop_faulty=drop_faulty, read_as=read_as)
    )
    needs_model = is_recipe or model is not None
    gate = _Gate() if checked.refusal else _gate(recipe, is_asked=is_chosen or needs_model, needs_model=needs_model)
    if report is not None:
        write_report(checked, report, _tokens(checked, gate))
    emit(_whole_document(checked, mended, gate), _whole_text(checked, mended, gate, recipe), as_json)
    if not as_json:
        _print_findings(checked, gate)
    if not _is_sound(checked, gate) or (strict and checked.findings):
        raise typer.Exit(3)


@dataclass(frozen=True)
class _Gate:
    """What the gate says of the rows: its report, or why it refuses, or why it was not asked; nothing of rows without a form."""

    report: GateReport | None = None
    refusal: DataError | None = None
    unasked: LuthierError | None = None

    @property
    def lengths(self) -> RowLengths | None:
        """How long the rows are in tokens; None where they did not all become tokens."""
        if self.report is not None:
            return self.report.lengths
        error = self.refusal or self.unasked
        return error.lengths if isinstance(error, GateRefusal) else None


def _gate(recipe: Recipe, *, is_asked: bool, needs_model: bool) -> _Gate:
    """The gate's verdict. Of a bare file it counts where the rows themselves are at fault, whatever learns from them; the model
    may then be out of reach.

    is_asked: a model or an objective was named, so that the verdict counts. needs_model: a model was.
    """
    from luthier.prepared import check_recipe

    try:
        return _Gate(report=check_recipe(recipe, say).gate)
    except DataError as error:
        counts = is_asked or (isinstance(error, GateRefusal) and error.is_of_rows)
        return _Gate(refusal=error) if counts else _Gate(unasked=error)
    except RecipeError as error:
        if is_asked:
            raise
        return _Gate(unasked=error)
    except (NotFound, NetworkError, ResourceError) as error:
        if needs_model:
            raise
        return _Gate(unasked=error)


def _is_sound(checked: Checked, gate: _Gate) -> bool:
    return not checked.errors and checked.refusal is None and gate.refusal is None


def _tokens(checked: Checked, gate: _Gate) -> Tokens:
    """What the model's tokenizer says of the rows. Their mean is none where it read other rows, or pieces of them."""
    from luthier.data.checks.statistics import Tokens

    lengths = gate.lengths
    if lengths is None:
        return Tokens()
    is_all = lengths.num_rows == checked.num_rows + checked.num_held_out
    if gate.report is not None and is_all and not lengths.num_long:
        return Tokens(gate.report.mean_row, lengths)  # in which what two texts share counts once
    return Tokens(lengths.num_tokens / lengths.num_rows if is_all else None, lengths)


def _whole_document(checked: Checked, mended: Mended | None, gate: _Gate) -> dict[str, Any]:
    from luthier.data.checks.statistics import statistics_of

    refusal = checked.refusal or gate.refusal
    return {
        "ok": _is_sound(checked, gate),
        "rows": checked.num_rows,
        "held_out_rows": checked.num_held_out,
        "form": checked.form,
        "gives": checked.gives,
        "reason": checked.reason,
        "refused": checked.refusal is not None,
        "findings": [finding.as_json() for finding in checked.findings],
        "counts": checked.counts,
        "notes": [word.as_json() for word in checked.common],
        "statistics": statistics_of(checked, _tokens(checked, gate)),
        **({"fixed": mended.as_json()} if mended is not None else {}),
        "gate": _gate_document(gate),
        **({"error": refusal.as_json()["error"]} if refusal is not None else {}),
    }


def _gate_document(gate: _Gate) -> dict[str, Any]:
    if gate.report is not None:
        return document_of(gate.report)
    error = gate.refusal or gate.unasked
    if error is None:
        return {"ok": False, "asked": False}
    return {"ok": False, "asked": gate.refusal is not None, **error.as_json()}


def _whole_text(checked: Checked, mended: Mended | None, gate: _Gate, recipe: Recipe) -> str:
    from luthier.data.checks.statistics import said_of_lengths

    num_errors = len(checked.errors)
    held_out = f" and {checked.num_held_out:,} for validation" if checked.num_held_out else ""
    lines = [f"{checked.num_rows:,} row{'' if checked.num_rows == 1 else 's'}{held_out}; {_form(checked)}."]
    lines += [f"  {count:>7,}  {kind}" for kind, count in checked.counts.items()]
    lines += [f"{num_errors:,} errors, {len(checked.findings) - num_errors:,} warnings."]
    if recipe.data.validation == "auto" and not checked.num_held_out and checked.counts.get("near-duplicate"):
        lines += [_ACROSS]
    if mended is not None:
        lines += [f"Written: {mended.num_written:,} rows. {_became(mended)}"]
    if gate.report is not None:
        lines += ["", text_of(gate.report)]
    elif gate.unasked is not None:
        lines += ["", _not_counted(gate.unasked, recipe)]
    lengths = gate.lengths
    if lengths is not None and lengths.num_long:
        lines += [said_of_lengths(lengths)]
    return "\n".join(lines)


def _not_counted(error: LuthierError, recipe: Recipe) -> str:
    """What the gate has to say where it was not asked."""
    if isinstance(error, DataError | RecipeError):
        return (
            f"For {recipe.model.name} and objective.kind {recipe.objective.kind}, within {recipe.data.max_length:,} tokens, the rows "
            f"would be refused; it does not count, since nobody named a model or an objective. {error}"
        )
    return f"Tokens were not looked at: {error.found} {error.mend}"


def _form(checked: Checked) -> str:
    if checked.refusal is not None:
        return "nothing can be learned from them"
    return f"read as {checked.form} ({checked.reason.rstrip('.')})" if checked.form else checked.reason


def _became(mended: Mended) -> str:
    """What was mended, left out and kept, by kind."""
    parts = (("Mended", mended.mended), ("Left out", mended.left_out), ("Kept as they are", mended.kept))
    said = [
        f"{name}: {', '.join(f'{count} {kind}' for kind, count in counts.most_common())}."
        for name, counts in parts
        if counts
    ]
    return " ".join(said) or "There was nothing to mend."


def _print_findings(checked: Checked, gate: _Gate) -> None:
    """The findings on standard error, errors first, at most so many; what is too common to be told singly; then the refusal."""
    ordered = sorted(checked.findings, key=lambda finding: finding.severity)
    for finding in ordered[:_MOST_SHOWN]:
        say(f"{finding.severity}: {finding.where}: {finding.kind}: {finding.found}")
        say(f"  {finding.mend}")
    if len(ordered) > _MOST_SHOWN:
        say(f"... and {len(ordered) - _MOST_SHOWN:,} more; --json gives them all.")
    for word in checked.common:
        say(f"note: {word.said}")
    refusal = checked.refusal or gate.refusal
    if refusal is not None:
        print_error(refusal, as_json=False)
