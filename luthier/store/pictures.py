"""Pictures as all of them look and are written: PNGs with quiet rules and open frames."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from luthier.store.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def rule(axes: Axes, across: Literal["both", "x", "y"] = "both") -> None:
    """Give axes faint rules behind what is drawn, and a frame that is open above and to the right."""
    axes.grid(axis=across, color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def png_of(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG."""
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def write_png(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG, whole or not at all. Raises: DiskFull."""
    write_bytes(path, png_of(figure))
