"""A tournament as a picture: each system's strength and how sure it is, the best at the top."""

from __future__ import annotations

from pathlib import Path

from luthier.evaluation.judged.tournament import Tournament
from luthier.store.pictures import rule, write_png


def write_picture(tournament: Tournament, path: Path) -> None:
    """Write a PNG: Bradley–Terry strengths with their intervals over questions, and Elo beside them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    standings = tournament.standings[::-1]
    figure = Figure(figsize=(8, 1.2 + 0.38 * len(standings)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    places = list(range(len(standings)))
    values = [one.strength.value for one in standings]
    below = [one.strength.value - one.strength.low for one in standings]
    above = [one.strength.high - one.strength.value for one in standings]
    label = "Bradley-Terry, 95 % over questions"
    axes.errorbar(values, places, xerr=[below, above], fmt="o", color="#2563eb", capsize=3, label=label)
    elos = [one.elo.mean for one in standings]
    axes.plot(elos, places, "|", color="#dc2626", markersize=12, label="Elo, mean over orders")
    axes.set_yticks(places, [one.name for one in standings])
    axes.set_xlabel("rating (points)")
    rule(axes, "x")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    write_png(figure, path)
