"""`luthier resume`: go on with a run that was stopped."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.cli.options import Json, PlainAllocator
from luthier.cli.process import keep_freed_memory


def resume(
    run: Annotated[str, typer.Argument(help="The run: its folder, its name under runs/, or latest.")],
    plain_allocator: PlainAllocator = False,
    as_json: Json = False,
) -> None:
    """Go on with a run from its last whole checkpoint, to the same final bits; prints the run folder."""
    from luthier.cli.display import TrainingDisplay
    from luthier.cli.train import report_result

    with TrainingDisplay() as display:
        from luthier.api import RUNS
        from luthier.recipe.loading import recipe_of_run
        from luthier.run import resume_run
        from luthier.store.runs import find_run

        folder = find_run(run, RUNS)
        if not plain_allocator:
            recomputes = recipe_of_run(folder).training.gradient_checkpointing
            keep_freed_memory(display.announce, saves_memory=recomputes)
        result = resume_run(folder, announce=display.announce, on_step=display.on_step)
    report_result(result, display.announce, as_json)
