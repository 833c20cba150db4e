"""What a run leaves for people to read: `report.md` and `loss.png`.

Both are made from the run's metrics (the lines of `metrics.jsonl`) and say nothing that is not in them.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from luthier.evaluation.answer_curves import PREFIX, answer_columns, answer_lines
from luthier.evaluation.reward_report import has_rewards, reward_lines
from luthier.objectives import SFT, Objective
from luthier.store.files import write_text
from luthier.store.pictures import rule, write_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from luthier.evaluation.verdict import Evaluation, Table

Metrics = Sequence[Mapping[str, Any]]

_TRAIN, _HELD_OUT, _RATE, _QUIET = "#2563eb", "#ea580c", "#0d9488", "#6b7280"
_FEWEST_STEPS_TO_SMOOTH = 20


@dataclass(frozen=True)
class Told:
    """What a run has to show beside its numbers: warnings in words, and tables."""

    warnings: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()


NOTHING = Told()


def write_report(
    path: Path,
    metrics: Metrics,
    facts: Mapping[str, str],
    evaluation: Evaluation | None = None,
    *,
    objective: type[Objective] = SFT,
    told: Told = NOTHING,
) -> None:
    """Write a run's report to `path` as Markdown; it shows the `loss.png` beside it.

    facts: what to say of the run, by name and in order (model, data, method, …), one short text each.
    evaluation: base against tuned on held-out rows, where that was done. objective: what was learned, which says what its loss is. told:
    what else there is to show.
    Raises: DiskFull.
    """
    sections = [f"# {path.absolute().parent.name}", _table(["", ""], list(facts.items())), "## Training"]
    course = "\n".join(f"- {line}" for line in training_lines(metrics, objective))
    sections += [course, *(f"**{warning}**" for warning in told.warnings), "![Loss by step](loss.png)"]
    if has_rewards(metrics):
        sections.append("![Rewards, divergence and lengths](rewards.png)")
    sections += _tables(told.tables)
    if evaluation is not None:
        sections += ["## Held-out rows", *_evaluation_sections(evaluation)]
    write_text(path, "\n\n".join(sections) + "\n")


def write_model_report(path: Path, name: str, evaluation: Evaluation, command: str) -> None:
    """Write what was found of a model of no run to `path` as Markdown. command: what measured it. Raises: DiskFull."""
    sections = [f"# {name}", *_evaluation_sections(evaluation), "## The same again", f"```\n{command}\n```"]
    write_text(path, "\n\n".join(sections) + "\n")


def _evaluation_sections(evaluation: Evaluation) -> list[str]:
    """All that an evaluation says but its answers."""
    head, *rows = evaluation.as_table()
    return [*evaluation.sentences, _table(head, rows), *evaluation.remarks, *_tables(evaluation.tables)]


def write_loss_plot(metrics: Metrics, path: Path, objective: type[Objective] = SFT) -> None:
    """Write a PNG of the loss by step: training (each step and smoothed), held-out rows, and the learning rate below.

    objective: what was learned, which says what its loss is.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    answers = answer_columns(metrics)
    upper, *middle, lower = figure.subplots(
        3 if answers else 2, 1, sharex=True, height_ratios=[4, *[2] * bool(answers), 1]
    )
    for axes in middle:
        _draw_answers(axes, metrics, answers)
    _draw_losses(upper, metrics)
    upper.set_ylabel(f"loss ({objective.loss_unit})")
    steps, rates = _column(metrics, "lr")
    lower.plot(steps, rates, color=_RATE, linewidth=1.6, marker="o" if len(steps) == 1 else None)
    lower.set_ylabel("learning\nrate")
    lower.set_ylim(bottom=0)
    lower.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    lower.set_xlabel("step")
    lower.set_xlim(0, max((row["step"] for row in metrics), default=1) * 1.02)
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (upper, *middle, lower):
        rule(axes)
    write_png(figure, path)


def smoothed(values_N: Sequence[float], width: float) -> NDArray[np.float64]:
    """Each value averaged with its neighbours under a bell curve of `width` steps (standard deviation), shape (N,).

    At the ends the average is over the neighbours that exist, so that nothing bends towards zero.
    """
    values = np.asarray(values_N, dtype=np.float64)
    reach = min(int(4 * width) + 1, len(values) - 1)
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    kept = slice(reach, reach + len(values))
    averages: NDArray[np.float64] = np.convolve(values, bell)[kept] / np.convolve(np.ones_like(values), bell)[kept]
    return averages


def _draw_losses(axes: Axes, metrics: Metrics) -> None:
    steps, losses = _column(metrics, "loss")
    held_out_steps, held_out = _column(metrics, "validation_loss")
    if len(steps) >= _FEWEST_STEPS_TO_SMOOTH:
        axes.plot(steps, losses, color=_TRAIN, linewidth=0.8, alpha=0.3)
        width = max(1.0, len(steps) / 50)
        axes.plot(steps, smoothed(losses, width), color=_TRAIN, linewidth=2, label="training (smoothed)")
    elif steps:
        axes.plot(steps, losses, color=_TRAIN, linewidth=1.6, marker="o", markersize=3.5, label="training")
    if held_out_steps:
        best = min(range(len(held_out)), key=held_out.__getitem__)
        label = f"held-out rows (best {held_out[best]:.3f} after step {held_out_steps[best]})"
        axes.plot(held_out_steps, held_out, color=_HELD_OUT, linewidth=1.6, marker="o", markersize=5, label=label)
        axes.plot(
            held_out_steps[best], held_out[best], color=_HELD_OUT, marker="o", markersize=11, markerfacecolor="none"
        )
    if steps or held_out_steps:
        axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0)  # over the plot
    else:
        axes.text(0.5, 0.5, "no steps yet", transform=axes.transAxes, ha="center", va="center", color=_QUIET)


def _draw_answers(axes: Axes, metrics: Metrics, columns: Sequence[str]) -> None:
    for column in columns:
        axes.plot(*_column(metrics, column), linewidth=1.6, marker="o", markersize=4, label=column.removeprefix(PREFIX))
    axes.set_ylabel("answers")
    axes.set_ylim(-0.03, 1.03)
    axes.legend(frameon=False, loc="best", ncols=2)


def _column(metrics: Metrics, name: str) -> tuple[list[int], list[float]]:
    """The steps that have a finite value under a name, and the values."""
    pairs = [(row["step"], row[name]) for row in metrics if row.get(name) is not None and np.isfinite(row[name])]
    return [step for step, _ in pairs], [value for _, value in pairs]


def training_lines(metrics: Metrics, objective: type[Objective]) -> list[str]:
    """The course of the training, a sentence each."""
    steps, _ = _column(metrics, "loss")
    if not steps:
        return ["No step was made."]
    seconds = sum(_column(metrics, "seconds")[1])
    lines = [
        f"{steps[-1]} steps in {_duration(seconds)}, {_sum(metrics, 'learned_tokens'):,} {objective.targets_are} "
        f"in {_sum(metrics, 'real_tokens'):,} tokens.",
        *loss_lines(metrics, objective),
    ]
    if speeds := _column(metrics, "tokens_per_second")[1]:
        lines.append(f"{statistics.median(speeds):,.0f} real tokens per second (median step).")
    if peaks := _column(metrics, "peak_memory_bytes")[1]:
        lines.append(f"Peak memory {max(peaks) / 2**30:.2f} GiB.")
    return lines


def loss_lines(metrics: Metrics, objective: type[Objective]) -> list[str]:
    """How rewards and losses went, a sentence each; none without a step."""
    _, losses = _column(metrics, "loss")
    if not losses:
        return []
    tenth = max(1, len(losses) // 10)
    first, last = statistics.mean(losses[:tenth]), statistics.mean(losses[-tenth:])
    lines = [
        *(reward_lines(metrics) if has_rewards(metrics) else []),
        f"Training loss {first:.3f} → {last:.3f} {objective.loss_unit} (means of the first and last {tenth} steps).",
    ]
    held_out_steps, held_out = _column(metrics, "validation_loss")
    if held_out and not has_rewards(metrics):
        best = min(range(len(held_out)), key=held_out.__getitem__)
        lines.append(
            f"Held-out loss {held_out[-1]:.3f} at the end; best {held_out[best]:.3f} after step {held_out_steps[best]}."
        )
    return [*lines, *answer_lines(metrics)]


def _sum(metrics: Metrics, name: str) -> int:
    return round(sum(_column(metrics, name)[1]))


def _duration(seconds: float) -> str:
    """Seconds as a person says them: 42 s, 3 min 5 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _tables(tables: Sequence[Table]) -> list[str]:
    """Each under its title."""
    return [part for each in tables for part in (f"### {each.title}", _table(each.rows[0], each.rows[1:]))]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
