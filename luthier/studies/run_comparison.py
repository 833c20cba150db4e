"""Runs beside each other: in what their recipes differ, how their losses went, what they cost, and what each one's evaluation said."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import UsageError
from luthier.evaluation.report import smoothed
from luthier.evaluation.report_page import ComparisonPage, write_comparison_page
from luthier.evaluation.run_report import read_evaluation
from luthier.recipe.loading import recipe_of_run
from luthier.sizes import readable_bytes
from luthier.store.files import write_bytes
from luthier.store.pictures import png_of, rule
from luthier.store.runs import METRICS, read_metrics, read_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from luthier.evaluation.verdict import Evaluation

_COLOURS = ("#2563eb", "#ea580c", "#0d9488", "#9333ea", "#dc2626", "#65a30d", "#0891b2", "#6b7280")
_FEWEST_TO_SMOOTH = 20


@dataclass(frozen=True)
class OneRun:
    """A run's name, how it ended, its settings by their dotted names, and its steps' numbers.

    evaluated: what its last evaluation found, as JSON values; None where there was none.
    """

    name: str
    state: str
    settings: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]
    evaluated: Mapping[str, Any] | None

    def column(self, name: str) -> list[tuple[int, float]]:
        """The steps that have a number under a name, and the number."""
        return [(each["step"], each[name]) for each in self.steps if each.get(name) is not None]


@dataclass(frozen=True)
class RunsCompared:
    """Several runs, the first being what the others are compared with."""

    runs: tuple[OneRun, ...]

    @property
    def differences(self) -> list[tuple[str, tuple[Any, ...]]]:
        """The settings in which they differ, and each one's value; None where a run's recipe has no such setting."""
        names = dict.fromkeys(name for run in self.runs for name in run.settings)
        values = {name: tuple(run.settings.get(name) for run in self.runs) for name in names}
        return [(name, each) for name, each in values.items() if any(value != each[0] for value in each)]

    def as_table(self) -> list[list[str]]:
        """How they went, a line each, under a head."""
        return [["run", *_NUMBERS], *([run.name, *(told(run) for told in _NUMBERS.values())] for run in self.runs)]

    def differences_table(self) -> list[list[str]]:
        """The settings in which they differ, a line each, under a head."""
        return [
            ["setting", *(run.name for run in self.runs)],
            *([name, *map(shown, v)] for name, v in self.differences),
        ]

    def evaluated_table(self) -> list[list[str]]:
        """What each run's own evaluation said, under a head: its verdict, and before and after of what it knew; empty if none has one."""
        found = [run.evaluated for run in self.runs]
        if not any(found):
            return []
        parts = dict.fromkeys(name for each in found for name in _known(each))
        return [
            ["evaluated", *(run.name for run in self.runs)],
            ["verdict", *("" if each is None else each.get("verdict") or "" for each in found)],
            *([name, *(_known(each).get(name, "") for each in found)] for name in parts),
        ]

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {
            "runs": [
                {
                    "name": run.name,
                    "state": run.state,
                    "steps": run.steps[-1]["step"] if run.steps else 0,
                    "loss": [list(pair) for pair in run.column("loss")],
                    "validation_loss": [list(pair) for pair in run.column("validation_loss")],
                    "seconds": sum(value for _, value in run.column("seconds")),
                    "peak_memory_bytes": max((value for _, value in run.column("peak_memory_bytes")), default=None),
                    "verdict": None if run.evaluated is None else run.evaluated.get("verdict"),
                    "forgetting": None if run.evaluated is None else run.evaluated.get("forgetting"),
                }
                for run in self.runs
            ],
            "differences": {name: list(values) for name, values in self.differences},
        }


def compare_runs(folders: Sequence[Path]) -> RunsCompared:
    """The runs in these folders. Raises: UsageError for fewer than two; RecipeError for a recipe that cannot be read."""
    if len(folders) < 2:
        raise UsageError(
            "One run alone has nothing to be compared with.", "Name two runs or more; 'luthier runs' lists them."
        )
    named = [folder.name for folder in folders]
    names = [str(folder) if named.count(folder.name) > 1 else folder.name for folder in folders]
    return RunsCompared(tuple(_one(name, folder) for name, folder in zip(names, folders, strict=True)))


def _one(name: str, folder: Path) -> OneRun:
    settings = recipe_of_run(folder).model_dump(mode="json", by_alias=True)
    steps = read_metrics(folder) if (folder / METRICS).exists() else []
    return OneRun(name, read_run(folder).state, _flat(settings), steps, read_evaluation(folder))


def _known(evaluated: Mapping[str, Any] | None) -> dict[str, str]:
    """What a run knew beyond its rows, base → tuned with the interval of that, by the parts of the probe and as a whole."""
    probed = None if evaluated is None else evaluated.get("forgetting")
    if probed is None:
        return {}
    parts = {
        name: f"{_number(of['base'])} → {_number(of['tuned'])} "
        f"[{', '.join(map(_number, probed['intervals'][name]['tuned']))}]"
        for name, of in probed["metrics"].items()
    }
    return {"what it knew": probed["verdicts"]["tuned"], **parts}


def _number(value: float | None) -> str:
    """A number of an evaluation's JSON; infinite ones stand there as null."""
    return "∞" if value is None else f"{value:.3f}"


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Settings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return found


# ── numbers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _last_losses(run: OneRun) -> str:
    """The mean training loss of the last tenth of the steps."""
    losses = [value for _, value in run.column("loss")]
    return f"{statistics.mean(losses[-max(1, len(losses) // 10) :]):.3f}" if losses else ""


def _held_out(run: OneRun) -> str:
    pairs = run.column("validation_loss")
    if not pairs:
        return ""
    step, best = min(pairs, key=lambda pair: pair[1])
    return f"{pairs[-1][1]:.3f}" + (f" (best {best:.3f}, step {step})" if step != pairs[-1][0] else "")


def _peak(run: OneRun) -> str:
    peaks = [value for _, value in run.column("peak_memory_bytes")]
    return readable_bytes(int(max(peaks))) if peaks else ""


_NUMBERS: dict[str, Callable[[OneRun], str]] = {
    "state": lambda run: run.state,
    "steps": lambda run: str(run.steps[-1]["step"]) if run.steps else "0",
    "training loss": _last_losses,
    "held-out loss": _held_out,
    "tokens": lambda run: f"{round(sum(value for _, value in run.column('real_tokens'))):,}",
    "seconds": lambda run: f"{sum(value for _, value in run.column('seconds')):,.0f}",
    "peak memory": _peak,
}


def shown(value: Any) -> str:
    """A setting's value as a table has it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# ── picture ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def write_curves(compared: RunsCompared, path: Path) -> None:
    """Write the curves as a PNG. Raises: DiskFull."""
    write_bytes(path, curves(compared))


def write_report(compared: RunsCompared, path: Path, evaluation: Evaluation | None, command: str) -> None:
    """Write all of it as one page that opens without a network. evaluation: the runs on the same rows. Raises: DiskFull."""
    title = ", ".join(run.name for run in compared.runs)
    page = ComparisonPage(title, compared.as_table(), compared.differences_table(), compared.evaluated_table(), command)
    write_comparison_page(path, page, curves(compared), evaluation)


def curves(compared: RunsCompared) -> bytes:
    """A PNG of all training losses (left) and held-out losses (right) by step."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    training, held_out = figure.subplots(1, 2, sharey=True)
    for number, run in enumerate(compared.runs):
        colour = _COLOURS[number % len(_COLOURS)]
        _draw(training, run.column("loss"), run.name, colour, is_noisy=True)
        _draw(held_out, run.column("validation_loss"), run.name, colour, is_noisy=False)
    for axes, title in ((training, "training"), (held_out, "held-out rows")):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        rule(axes)
        if axes.get_lines():
            axes.legend(frameon=False, fontsize=8)
    training.set_ylabel("loss")
    return png_of(figure)


def _draw(axes: Axes, pairs: Sequence[tuple[int, float]], name: str, colour: str, *, is_noisy: bool) -> None:
    if not pairs:
        return
    steps, values = [step for step, _ in pairs], [value for _, value in pairs]
    if is_noisy and len(values) >= _FEWEST_TO_SMOOTH:
        axes.plot(steps, values, color=colour, linewidth=0.6, alpha=0.25)
        axes.plot(steps, smoothed(values, max(1.0, len(values) / 50)), color=colour, linewidth=1.8, label=name)
    else:
        axes.plot(steps, values, color=colour, linewidth=1.6, marker="o", markersize=4, label=name)
