"""Before a run: its plan, written into the run folder, and a refusal of what cannot fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from luthier.errors import LuthierError, ResourceError
from luthier.models.loading import choose_device
from luthier.models.sources import locate, read_config, with_new_tokens
from luthier.planner.plan import Target, make_plan, memory_of, within_limit
from luthier.planner.request import rows_of
from luthier.prepared import Prepared
from luthier.recipe import Recipe
from luthier.sizes import readable_bytes
from luthier.store.files import write_json
from luthier.store.runs import PLAN


def plan_run(
    recipe: Recipe,
    prepared: Prepared,
    folder: Path,
    announce: Callable[[str], None],
) -> None:
    """Write the plan of a run on this machine and say what it comes to. recipe: with what its rows settle.

    Raises ResourceError, with what would help, for one that does not fit.
    """
    source = locate(recipe.model, announce, weights=False)
    config = with_new_tokens(read_config(source), source, prepared.tokenizer)
    rows = rows_of(recipe, prepared, announce)
    device = choose_device(recipe.model.device)
    try:
        plan = make_plan(recipe, config, rows, Target(device, within_limit(recipe, device, memory_of(device))))
    except LuthierError as error:  # what the run itself cannot do, it says for itself
        announce(f"The run is not planned: {error.found}")
        return
    write_json(folder / PLAN, asdict(plan))
    limit = recipe.training.memory_limit_gb
    is_bound = limit is not None and plan.memory_bytes == int(limit * 1e9)
    there = f"{readable_bytes(plan.memory_bytes)} are {'allowed (training.memory_limit_gb)' if is_bound else 'free'}"
    needs = f"{readable_bytes(plan.peak_bytes)} of memory at most, during the {plan.phase}"
    if plan.verdict == "does not fit":
        helps = "; ".join(f"{lever.change} ({readable_bytes(lever.peak_bytes)})" for lever in plan.levers)
        raise ResourceError(
            f"The run would need {needs}, and {there}.",
            f"{f'What would help most: {helps}. ' if helps else ''}To begin it all the same, add --no-plan.",
        )
    tight = ", which is tight" if plan.verdict == "tight" else ""
    announce(f"Planned: {needs}; {there}{tight}.")
