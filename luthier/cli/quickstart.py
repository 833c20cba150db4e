"""`luthier quickstart`: the built-in model tuned on the built-in task."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.options import Json, PlainAllocator
from luthier.cli.output import emit, say
from luthier.cli.process import keep_freed_memory


def quickstart(
    out: Annotated[Path | None, typer.Option("--out", help="The run folder; unset: runs/quickstart-N.")] = None,
    model: Annotated[str, typer.Option("--model", help="The base model.")] = "smollm2-135m",
    num_train: Annotated[int | None, typer.Option("--train", min=8, help="Tickets to tune on.")] = None,
    num_held_out: Annotated[int | None, typer.Option("--held-out", min=1, help="Tickets to judge with.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed, other tickets.")] = 0,
    plain_allocator: PlainAllocator = False,
    as_json: Json = False,
) -> None:
    """Tune the built-in model on support tickets, and show its answers before and after."""
    from luthier.cli.display import TrainingDisplay

    with TrainingDisplay() as display:
        if not plain_allocator:
            keep_freed_memory(display.announce)
        from luthier.api import RUNS
        from luthier.store.places import expanded
        from luthier.store.runs import new_run_folder
        from luthier.studies.quickstart import NUM_HELD_OUT, NUM_TRAIN, run_quickstart

        run_folder = new_run_folder(RUNS, "quickstart") if out is None else expanded(out)
        result = run_quickstart(
            run_folder.with_name(f"{run_folder.name}-tickets"),
            run_folder=run_folder,
            announce=display.announce,
            on_step=display.on_step,
            seed=seed,
            model=model,
            num_train=num_train or NUM_TRAIN,
            num_held_out=num_held_out or NUM_HELD_OUT,
        )
    emit(result.as_json(), "\n".join(result.lines()), as_json)
    if shutil.which("luthier") is None:
        say(f"(Here 'luthier' is {sys.argv[0]}.)")
