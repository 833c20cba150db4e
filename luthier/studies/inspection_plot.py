"""The picture of an inspection: how strong and how wide each layer's update is, and how its spectrum falls."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from luthier.ops.spectrum import energy_by_rank
from luthier.store.pictures import write_png
from luthier.studies.inspection import KEPT, Inspection, LayerUpdate

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OTHER = "other"


def write_inspection_plot(inspection: Inspection, path: Path) -> None:
    """Write a PNG: heat maps of relative norm and effective rank over layers and roles, and the energy by rank."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_layers = len({update.layer for update in inspection.layers})
    figure = Figure(figsize=(13, max(4.0, 0.24 * num_layers + 2)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    strong, wide, spectrum = figure.subplots(1, 3, width_ratios=[1, 1, 1.2])
    _heat(figure, strong, inspection, "size of the update / size of the weight", lambda update: update.relative_norm)
    _heat(figure, wide, inspection, "effective rank of the update", lambda update: update.effective_rank)
    _spectra(spectrum, inspection)
    write_png(figure, path)


def _heat(
    figure: Figure, axes: Axes, inspection: Inspection, title: str, value_of: Callable[[LayerUpdate], float]
) -> None:
    roles, layers, values = grid(inspection, value_of)
    image = axes.imshow(values, aspect="auto", cmap="viridis")
    axes.set_title(title, fontsize=10)
    axes.set_xticks(range(len(roles)), roles, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(layers)), layers, fontsize=8)
    axes.set_ylabel("layer")
    figure.colorbar(image, ax=axes, shrink=0.8)


def grid(
    inspection: Inspection, value_of: Callable[[LayerUpdate], float]
) -> tuple[list[str], list[str], NDArray[np.float64]]:
    """The roles (columns), the layers (rows), and a figure for each; NaN where a layer has no such update."""
    roles = list(dict.fromkeys(update.role for update in inspection.layers))
    layers = list(dict.fromkeys(_row_of(update) for update in inspection.layers))
    values = np.full((len(layers), len(roles)), np.nan)
    for update in inspection.layers:
        values[layers.index(_row_of(update)), roles.index(update.role)] = value_of(update)
    return roles, layers, values


def _row_of(update: LayerUpdate) -> str:
    return _OTHER if update.layer is None else str(update.layer)


def _spectra(axes: Axes, inspection: Inspection) -> None:
    for update in inspection.layers:
        energy_K = energy_by_rank(update.sigma_K).numpy()
        axes.plot(np.arange(1, len(energy_K) + 1), energy_K, color="#2563eb", alpha=0.15, linewidth=1)
    rank = inspection.rank_to_keep
    axes.axvline(rank, color="#ea580c", linewidth=1.6, label=f"rank {rank} keeps {KEPT:.0%} of all")
    axes.axhline(KEPT, color="#6b7280", linewidth=0.8, linestyle=":")
    axes.set_title("share of the update's energy by rank, a line a layer", fontsize=10)
    axes.set_xlabel("rank")
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
