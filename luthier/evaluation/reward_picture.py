"""What a reward model's scores are like, as a picture: calibration, margins, and accuracy by length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from luthier.evaluation.pairwise import Bin, ByLength
from luthier.store.pictures import rule, write_png

_BLUE, _ORANGE, _GREY = "#2563eb", "#ea580c", "#9ca3af"


def write_reward_picture(
    bins: Sequence[Bin], gaps: Sequence[tuple[float, float, int]], lengths: Sequence[ByLength], path: Path
) -> None:
    """Write a PNG of three panels: how often what the scores say came so, how far apart scores are, and where length decides."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    left.plot([0, 1], [0, 1], color=_GREY, linewidth=1)
    left.plot([each.mean for each in bins], [each.right for each in bins], "o-", color=_BLUE)
    left.set(xlabel="chance that the scores give", ylabel="how often it came so", xlim=(0, 1), ylim=(0, 1))
    starts, widths = [low for low, _, _ in gaps], [high - low for low, high, _ in gaps]
    colors = [_BLUE if low + high >= 0 else _ORANGE for low, high, _ in gaps]
    middle.bar(starts, [count for *_, count in gaps], width=widths, align="edge", color=colors)
    middle.axvline(0, color=_GREY, linewidth=1)
    middle.set(xlabel="raw margin of the better answer", ylabel="pairs")
    places = list(range(len(lengths)))
    values = [each.accuracy.value for each in lengths]
    below = [each.accuracy.value - each.accuracy.low for each in lengths]
    above = [each.accuracy.high - each.accuracy.value for each in lengths]
    right.errorbar(places, values, yerr=[below, above], fmt="o", color=_BLUE, capsize=3)
    right.axhline(0.5, color=_GREY, linewidth=1)
    right.set_xticks(places, [f"{(each.low + each.high) / 2:+.0f}" for each in lengths], rotation=45)
    right.set(xlabel="letters more of the better answer", ylabel="accuracy, 95 %", ylim=(0, 1))
    for axes in (left, middle, right):
        rule(axes)
    write_png(figure, path)
