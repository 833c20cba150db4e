"""`luthier tournament`: systems that were judged against each other on one table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.options import Json
from luthier.cli.output import aligned, emit, say

if TYPE_CHECKING:
    from luthier.evaluation.judged.tournament import Tournament


def tournament(
    files: Annotated[
        list[str],
        typer.Argument(
            help="Judgments: rows with model_1, model_2 and verdict (1, 2, 3: as good) or score_1, score_2."
        ),
    ],
    against: Annotated[
        str | None, typer.Option("--against", help="The system whose scores count as 100 %; needs scores.")
    ] = None,
    swap_scores: Annotated[
        list[str] | None,
        typer.Option(
            "--swap-scores",
            metavar="PATTERN",
            help="In rows of systems called so ('*' stands for anything) score_1 is of model_2, and score_2 of model_1; repeatable.",
        ),
    ] = None,
    orders: Annotated[
        int, typer.Option("--orders", min=1, help="Random orders of the games that Elo is the mean of.")
    ] = 10_000,
    k_factor: Annotated[float, typer.Option("--k", min=0.1, help="How far one game may move Elo.")] = 32.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the orders and the intervals.")] = 0,
    plot: Annotated[Path | None, typer.Option("--plot", help="Write the ratings as a PNG.")] = None,
    as_json: Json = False,
) -> None:
    """Rank systems by judgments of their answers: Elo, Bradley-Terry with intervals, and how far the judging can be trusted."""
    from luthier.data.reading import iter_rows
    from luthier.evaluation.judged.judgments import judged_from
    from luthier.evaluation.judged.tournament import hold
    from luthier.store.places import expanded

    judged = judged_from(iter_rows(tuple(files), say), swap_scores or ())
    held = hold(judged, reference=against, orders=orders, k_factor=k_factor, seed=seed)
    if plot is not None:
        from luthier.evaluation.judged.picture import write_picture

        write_picture(held, expanded(plot))
        say(f"Ratings as a picture: {plot}")
    emit(held.as_json(), _text(held), as_json)


def _text(held: Tournament) -> str:
    lines = aligned(held.as_table())
    position = held.position
    if position.consistent is not None:
        lines += [
            "",
            f"{position.num_twice:,} pairs were judged in both orders, {position.consistent:.1%} of them alike "
            f"(kappa {position.kappa:.2f}).",
        ]
    for one in held.judges:
        alike = f"{one.share:.1%} of {one.num_pairs:,} pairs alike, kappa {one.kappa:.2f}, Kendall's tau {one.tau:.2f}"
        lines.append(f"{one.left} and {one.right}: {alike if one.num_pairs else 'judged nothing in common'}.")
    if held.fleiss is not None and len(held.judges) > 1:
        lines.append(f"All judges: Fleiss' kappa {held.fleiss:.2f}.")
    return "\n".join([*lines, *([""] if held.notes else []), *held.notes])
