"""A comparison of methods for people to read: a Markdown table and a picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.store.files import write_bytes, write_text
from luthier.studies.method_comparison import MethodComparison, Outcome
from luthier.studies.published import published_for, published_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes

PLOT, REPORT = "comparison.png", "report.md"


def write_comparison_report(comparison: MethodComparison) -> None:
    """Write `report.md` and `comparison.png` into the study's folder."""
    write_plot(comparison, comparison.folder / PLOT)
    base = comparison.outcomes[0].base_loss
    text = [
        f"# {comparison.folder.absolute().name}",
        f"{comparison.num_rows} held-out rows; the base model's loss is {base:.4f} nats per learned token (mean of the rows).",
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
    by_count, by_memory, by_time = figure.subplots(1, 3, sharey=True)
    _scatter(by_count, comparison, "trained numbers", lambda outcome: float(outcome.num_trainable))
    by_count.set_xscale("log")
    _scatter(by_memory, comparison, "peak memory of the training process (GB)", lambda o: o.peak_memory_bytes / 1e9)
    _scatter(by_time, comparison, "seconds of training", lambda outcome: outcome.seconds)
    by_count.set_ylabel("fall of the held-out loss (nats per learned token)")
    image = io.BytesIO()
    figure.savefig(image, format="png")
    write_bytes(path, image.getvalue())


def _scatter(axes: Axes, comparison: MethodComparison, label: str, cost_of: Callable[[Outcome], float]) -> None:
    for outcome in comparison.outcomes:
        x, y = cost_of(outcome), outcome.fall
        axes.errorbar(x, y, yerr=outcome.standard_error, fmt="o", color="#2563eb", markersize=5, capsize=2)
        axes.annotate(outcome.name, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.axhline(0, color="#6b7280", linewidth=0.8)
    axes.set_xlabel(label)
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
