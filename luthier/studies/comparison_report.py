"""A comparison of methods for people to read: a Markdown table and a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.store.files import write_text
from luthier.store.pictures import rule, write_png
from luthier.studies.method_comparison import MethodComparison, Outcome
from luthier.studies.published import published_for, published_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLOT, REPORT = "comparison.png", "report.md"
_COSTS: dict[str, Callable[[Outcome], float]] = {
    "trained numbers": lambda outcome: float(outcome.num_trainable),
    "peak memory of the training process (GB)": lambda outcome: outcome.peak_memory_bytes / 1e9,
    "seconds of training": lambda outcome: outcome.seconds,
}
_FONT_SIZE = 7.0  # points, as all lengths of labels


def write_comparison_report(comparison: MethodComparison) -> None:
    """Write `report.md` and `comparison.png` into the study's folder."""
    write_plot(comparison, comparison.folder / PLOT)
    base = comparison.outcomes[0].base_loss
    text = [
        f"# {comparison.folder.absolute().name}",
        f"{comparison.num_rows} held-out rows; the base model's loss is {base:.4f} {comparison.loss_unit} (mean of the rows).",
        "fall: how much lower the tuned model's loss is, row by row, with the standard error of that mean.",
        markdown_table(comparison.as_table()),
        f"![Fall of the held-out loss against cost]({PLOT})",
    ]
    kinds = [outcome.kind for outcome in comparison.outcomes]
    if tables := published_for(kinds):
        text += [
            "## Published",
            "What others measured for these methods, on other models and data.",
            markdown_table(published_table(kinds)),
            "\n".join(f"- {table.measure}: {table.source}." for table in tables),
        ]
    write_text(comparison.folder / REPORT, "\n\n".join(text) + "\n")


def markdown_table(table: list[tuple[str, ...]]) -> str:
    """Head and rows as a Markdown table."""
    head, *rows = table
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, tuple("---" for _ in head), *rows))


def write_plot(comparison: MethodComparison, path: Path) -> None:
    """Write a PNG: the fall of the held-out loss against trained numbers, peak memory and seconds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    every_axes = figure.subplots(1, 3, sharey=True)
    for axes, (label, cost_of) in zip(every_axes, _COSTS.items(), strict=True):
        _scatter(axes, comparison, label, cost_of)
    every_axes[0].set_xscale("log")
    every_axes[0].set_ylabel(f"fall of the held-out loss ({comparison.loss_unit})")
    figure.canvas.draw()  # so that it is known where points lie
    named = {outcome.name: outcome for outcome in reversed(comparison.outcomes)}  # of several seeds the first
    for axes, cost_of in zip(every_axes, _COSTS.values(), strict=True):
        _name_points(axes, {name: (cost_of(outcome), outcome.fall) for name, outcome in named.items()})
    write_png(figure, path)


def _scatter(axes: Axes, comparison: MethodComparison, label: str, cost_of: Callable[[Outcome], float]) -> None:
    for outcome in comparison.outcomes:
        x, y = cost_of(outcome), outcome.fall
        axes.errorbar(x, y, yerr=outcome.standard_error, fmt="o", color="#2563eb", markersize=5, capsize=2)
    axes.margins(x=0.15)  # for names
    axes.axhline(0, color="#6b7280", linewidth=0.8)
    axes.set_xlabel(label)
    rule(axes)


def _name_points(axes: Axes, point_of: Mapping[str, tuple[float, float]]) -> None:
    """Write each name beside its point, at the nearest place where no other name stands and no point lies."""
    a_point = axes.figure.dpi / 72
    places = {name: axes.transData.transform(point) / a_point for name, point in point_of.items()}
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in places.values()]
    for name, (x, y) in sorted(places.items(), key=lambda item: -item[1][1]):
        width, height = 0.6 * _FONT_SIZE * len(name), _FONT_SIZE
        shifts = [(side, 0.5 * step * height) for step in range(24) for side in (5, -5 - width)]
        shifts += [(side, -up) for side, up in shifts]
        shifts.sort(key=lambda shift: abs(shift[1]))
        boxes = [(x + right, y + up - height / 2, x + right + width, y + up + height / 2) for right, up in shifts]
        free = (place for place, box in enumerate(boxes) if not any(_overlap(box, other) for other in taken))
        chosen = next(free, 0)
        taken.append(boxes[chosen])
        is_far = abs(shifts[chosen][1]) > height
        axes.annotate(
            name, point_of[name], xytext=shifts[chosen], textcoords="offset points", fontsize=_FONT_SIZE, va="center",
            arrowprops={"arrowstyle": "-", "color": "#9ca3af", "linewidth": 0.5} if is_far else None,
        )  # fmt: skip


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether two boxes (left, bottom, right, top) share a place."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
