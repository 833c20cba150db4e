"""Before a run: its plan, written into the run folder, and a refusal of what cannot fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from luthier.data.mixture import Mixture
from luthier.errors import LuthierError, ResourceError
from luthier.models.loading import choose_device
from luthier.models.sources import locate, read_config, with_new_tokens
from luthier.planner.plan import Target, make_plan, memory_of
from luthier.planner.request import Rows, stored_quantization
from luthier.recipe import Recipe
from luthier.sizes import readable_bytes
from luthier.store.files import write_json
from luthier.store.runs import PLAN
from luthier.types import Example


def plan_run(
    recipe: Recipe,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    announce: Callable[[str], None],
    mixture: Mixture | None = None,
) -> None:
    """Write the plan of a run on this machine and say what it comes to. recipe: with what its rows settle.

    Raises ResourceError, with what would help, for one that does not fit.
    """
    source = locate(recipe.model, announce)
    config = with_new_tokens(read_config(source), source, tokenizer)
    rows = Rows(examples, tokenizer, stored=stored_quantization(recipe, announce), mixture=mixture)
    device = choose_device(recipe.model.device)
    try:
        plan = make_plan(recipe, config, rows, Target(device, memory_of(device)))
    except LuthierError as error:  # what the run itself cannot do, it says for itself
        announce(f"The run is not planned: {error.found}")
        return
    write_json(folder / PLAN, asdict(plan))
    there = readable_bytes(plan.memory_bytes)
    needs = f"{readable_bytes(plan.peak_bytes)} of memory at most, during the {plan.phase}"
    if plan.verdict == "does not fit":
        helps = "; ".join(f"{lever.change} ({readable_bytes(lever.peak_bytes)})" for lever in plan.levers)
        raise ResourceError(
            f"The run would need {needs}, and {there} are free.",
            f"{f'What would help most: {helps}. ' if helps else ''}To begin it all the same, add --no-plan.",
        )
    tight = ", which is tight" if plan.verdict == "tight" else ""
    announce(f"Planned: {needs}; {there} are free{tight}.")
