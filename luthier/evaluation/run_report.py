"""The reports in a run's folder, `report.md` and `report.html`, written from what the run left there.

`report.json` holds the facts that both begin with, and numbers for a model card; it is written when a run ends, so that an
evaluation later can write the reports anew with what it found, which it leaves in `evaluation.json`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.evaluation.report import NOTHING, Told, write_model_report, write_report
from luthier.evaluation.report_page import RunPage, write_model_page, write_page
from luthier.evaluation.verdict import Table
from luthier.objectives import Objective
from luthier.store.files import read_json, write_folder, write_json
from luthier.store.runs import RECIPE, RESOLVED, read_metrics

if TYPE_CHECKING:
    from luthier.evaluation.verdict import Evaluation

FACTS, EVALUATION, ENVIRONMENT = "report.json", "evaluation.json", "environment.json"
REPORT, PAGE = "report.md", "report.html"
PLOT, REWARDS_PLOT = "loss.png", "rewards.png"


def write_run_report(
    folder: Path,
    facts: Mapping[str, str],
    numbers: Mapping[str, Any],
    objective: type[Objective],
    told: Told = NOTHING,
) -> None:
    """Write what a run leaves for people to read once it has ended. told: what else there is to show. Raises: DiskFull."""
    write_json(folder / FACTS, {"facts": dict(facts), "numbers": dict(numbers), "told": asdict(told)})
    _write(folder, facts, objective, None, ())


def write_evaluation(folder: Path, evaluation: Evaluation, objective: type[Objective], command: str) -> None:
    """Write the reports of a run anew, with an evaluation of it. command: what made that. Raises: DiskFull."""
    write_json(folder / EVALUATION, {**evaluation.as_json(), "command": command})
    _write(folder, _facts(folder), objective, evaluation, (command,))


def write_model_evaluation(folder: Path, name: str, evaluation: Evaluation, command: str) -> None:
    """Write reports on a model of no run into a new folder, and what was found. Raises: DiskFull."""

    def fill(partial: Path) -> None:
        write_json(partial / EVALUATION, {**evaluation.as_json(), "command": command})
        write_model_page(partial / PAGE, name, evaluation, command)
        write_model_report(partial / REPORT, name, evaluation, command)

    write_folder(folder, fill)


def read_report(folder: Path) -> Mapping[str, Any]:
    """What the run noted of itself when it ended: facts and numbers; nothing where an older version carried it out."""
    if not (folder / FACTS).is_file():
        return {}
    values = read_json(folder / FACTS)
    return values if isinstance(values, dict) else {}


def read_evaluation(folder: Path) -> Mapping[str, Any] | None:
    """What the last evaluation of a run found, as `luthier evaluate --json` gives it; None where it was not evaluated."""
    if not (folder / EVALUATION).is_file():
        return None
    values = read_json(folder / EVALUATION)
    return values if isinstance(values, dict) else None


def _facts(folder: Path) -> dict[str, str]:
    facts = read_report(folder).get("facts")
    return {str(name): str(value) for name, value in facts.items()} if isinstance(facts, dict) else {}


def _told(folder: Path) -> Told:
    found = read_report(folder).get("told")
    if not isinstance(found, dict):
        return NOTHING
    return Told(tuple(found["warnings"]), tuple(Table(**each) for each in found["tables"]))


def _write(
    folder: Path,
    facts: Mapping[str, str],
    objective: type[Objective],
    evaluation: Evaluation | None,
    commands: tuple[str, ...],
) -> None:
    metrics = read_metrics(folder)
    settings = next(path for name in (RESOLVED, RECIPE) if (path := folder / name).is_file())
    environment = read_json(folder / ENVIRONMENT) if (folder / ENVIRONMENT).is_file() else {}
    name = folder.absolute().name
    again = f"luthier train {shlex.quote(str(folder / RECIPE))} --out {shlex.quote(f'{name}-again')}"
    page = RunPage(name, facts, settings.read_text("utf-8"), environment, (again, *commands))
    plots = [folder / plot for plot in (PLOT, REWARDS_PLOT) if (folder / plot).is_file()]
    told = _told(folder)
    write_page(folder / PAGE, page, metrics, plots, evaluation, objective=objective, told=told)
    write_report(
        folder / REPORT, metrics, facts, evaluation, objective=objective, told=told
    )  # last: it says that the run is finished
