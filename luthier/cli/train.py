"""`luthier train`: carry out a recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.options import Json, Overrides, PlainAllocator
from luthier.cli.output import emit, quoted
from luthier.cli.process import keep_freed_memory

if TYPE_CHECKING:
    from luthier.objectives import Objective
    from luthier.run import RunResult


def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    out: Annotated[Path | None, typer.Option("--out", help="The run folder; unset: runs/NAME-N.")] = None,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Stop where step 1 would begin: read the rows and ask the gate, no more; luthier check finds faults in them too.",
        ),
    ] = False,
    no_plan: Annotated[
        bool, typer.Option("--no-plan", help="Do not plan the memory first, and begin also what would not fit.")
    ] = False,
    plain_allocator: PlainAllocator = False,
    as_json: Json = False,
) -> None:
    """Tune a model as a recipe says; prints the run folder."""
    from luthier.cli.display import TrainingDisplay

    with TrainingDisplay() as display:
        from luthier.recipe import load_recipe

        settings = load_recipe(recipe, overrides or ())
        if not plain_allocator:
            keep_freed_memory(display.announce, saves_memory=settings.training.gradient_checkpointing)
        if dry_run:
            from luthier.cli.gate import report_gate

            report_gate(settings, as_json)
            return
        from luthier.api import RUNS
        from luthier.run import train_recipe
        from luthier.store.places import expanded
        from luthier.store.runs import new_run_folder

        folder = new_run_folder(RUNS, recipe.stem) if out is None else expanded(out)
        display.announce(f"Run {folder}")
        result = train_recipe(settings, folder, announce=display.announce, on_step=display.on_step, plans=not no_plan)
    report_result(result, display.announce, as_json)


def report_result(result: RunResult, announce: Callable[[str], None], as_json: bool) -> None:
    """Say what a run came to and what may follow; print its folder, or with `--json` the numbers."""
    from luthier.recipe.loading import recipe_of_run

    folder = quoted(result.folder)
    objective = recipe_of_run(result.folder).objective
    loss = "" if result.final_loss is None else f", loss {result.final_loss:.3f}"
    best = ""
    if result.best_validation_loss is not None:
        is_reward = objective.takes == "prompts"  # its held-out loss is the reward's negative
        value = -result.best_validation_loss if is_reward else result.best_validation_loss
        best = f", best held-out {'reward' if is_reward else 'loss'} {value:.3f} at step {result.best_step}"
    early = ", stopped early" if result.stopped_early else ""
    announce(f"Finished after {result.steps} steps{early}{loss}{best}.")
    ask = _asking(objective, folder)
    announce(f"Next:  luthier {ask}\n       luthier evaluate {folder} --data FILE")
    document = {**vars(result), "folder": str(result.folder)}
    emit(document, str(result.folder), as_json)


def _asking(objective: Objective, folder: str) -> str:
    """The command that asks a run's model for what it learned."""
    from luthier.prediction.readers import reader_for

    reader = reader_for(objective)
    if reader is not None:
        return f"generate {folder} {reader.asking}"
    match objective.kind:
        case (
            "sft"
            | "distillation"
            | "dpo"
            | "kto"
            | "orpo"
            | "simpo"
            | "cpo"
            | "ppo"
            | "grpo"
            | "rloo"
            | "reinforce++"
            | "raft"
            | "online-dpo"
        ):
            return f"chat {folder} --compare"
        case "span-corruption" | "ul2":
            return f"generate {folder} --prompt 'A text with <extra_id_0> in it.'"
        case "denoising":
            return f"generate {folder} --prompt 'A text with a <mask> in it.'"
        case _:
            return f"generate {folder} --prompt TEXT"
