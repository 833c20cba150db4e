"""`luthier rlhf`: the classic path from answers to a policy, in one command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.options import Json, PlainAllocator
from luthier.cli.output import aligned, emit
from luthier.cli.process import keep_freed_memory

if TYPE_CHECKING:
    from luthier.studies.classic_path import Outcome


def rlhf(
    recipe: Annotated[Path, typer.Argument(help="The path: a YAML file with model, sft, pairs, reward, policy.")],
    out: Annotated[Path, typer.Option("--out", help="The folder of all stages; given again, the path goes on there.")],
    plain_allocator: PlainAllocator = False,
    as_json: Json = False,
) -> None:
    """Tune on answers, learn from comparisons what is better, tune by that, and say what it gained (docs/rlhf.md)."""
    from luthier.cli.display import TrainingDisplay
    from luthier.recipe.loading import read_yaml
    from luthier.store.places import expanded
    from luthier.studies.classic_path import read_path, walk

    with TrainingDisplay() as display:
        if not plain_allocator:
            keep_freed_memory(display.announce)
        file = expanded(recipe)
        path = read_path(read_yaml(file))
        outcome = walk(path, file.absolute().parent, expanded(out), announce=display.announce, on_step=display.on_step)
    emit(outcome.as_json(), _text(outcome), as_json)


def _text(outcome: Outcome) -> str:
    """The win rates, what was told of the rollouts, and the measures."""
    rates = [
        [name, f"{rate.value:.1%}", f"{rate.low:.1%} to {rate.high:.1%}"] for name, rate in outcome.win_rate.items()
    ]
    lines = aligned([["policy against tuned by", "win rate", "95 % interval"], *rates])
    if outcome.kl is not None:
        lines += ["", f"The policy's answers are {outcome.kl:.2f} nats from those of the model that it began from."]
    return "\n".join([*lines, *outcome.signs, "", *aligned(outcome.evaluation.as_table())])
