"""`luthier runs`: the runs here, and how far each is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.options import Json
from luthier.cli.output import aligned, emit
from luthier.sizes import readable_bytes

if TYPE_CHECKING:
    from luthier.store.runs import RunInfo


def runs(
    folder: Annotated[Path, typer.Argument(help="Where to look.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """List the runs in a folder, the newest last."""
    from luthier.store.runs import list_runs

    found = list_runs(folder)
    text = "\n".join(_lines(found)) if found else f"There are no runs in {folder}. Begin one: luthier train RECIPE"
    emit({"runs": [_document(run) for run in found]}, text, as_json)


def _document(run: RunInfo) -> dict[str, Any]:
    values = dict(vars(run))
    return {**values, "path": str(run.path), "started": run.started.isoformat()}


def _lines(found: list[RunInfo]) -> list[str]:
    rows = [("run", "state", "step", "loss", "memory", "planned", "method", "model", "begun")]
    for run in found:
        total = "?" if run.total_steps is None else run.total_steps
        step = "" if run.step is None else f"{run.step}/{total}"
        loss = "" if run.last_loss is None else f"{run.last_loss:.3f}"
        begun = run.started.astimezone().strftime("%Y-%m-%d %H:%M")
        memory, planned = map(_size, (run.peak_bytes, run.planned_bytes))
        rows.append((run.name, run.state, step, loss, memory, planned, run.method, run.model, begun))
    messages = ["", *(run.message for run in found)]
    return [
        line + (f"\n    {message}" if message else "") for line, message in zip(aligned(rows), messages, strict=True)
    ]


def _size(count: int | None) -> str:
    return "" if count is None else readable_bytes(count)
