"""One contestant: Luthier through its public Python path, in a process of its own."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.side import begin, say

if TYPE_CHECKING:
    from bench.clock import StepClock


def timed_run(recipe_file: Path | str, overrides: Sequence[str], clock: StepClock) -> list[dict[str, Any]]:
    """Carry out a recipe, each step a lap of the clock; the metrics of the steps."""
    from luthier.recipe import load_recipe
    from luthier.run import train_recipe

    told: list[dict[str, Any]] = []

    def announce(line: str) -> None:
        say(line)
        if not clock.laps:  # the last line before step 1 comes right before the loop
            clock.begin()

    def on_step(metrics: dict[str, Any]) -> None:
        clock.step_ended(metrics["loss"])
        told.append(metrics)

    recipe = load_recipe(recipe_file, overrides)
    with tempfile.TemporaryDirectory() as folder:
        train_recipe(recipe, Path(folder) / "run", announce=announce, on_step=on_step)
    return told


def versions_here() -> dict[str, str]:
    """Luthier's and transformers'."""
    import transformers

    from luthier.version import __version__

    return {"luthier": __version__, "transformers": transformers.__version__}


def main() -> int:
    """Do the work once and write what was measured; 1 if the steps did not hold the rows that they should."""
    arguments = begin("Luthier", own_allocator=True)
    # only now, so that the allocator is set before torch takes its first memory
    from bench.clock import StepClock
    from bench.work import read_work

    work = read_work(arguments.work)
    clock = StepClock()
    real_tokens = [step["real_tokens"] for step in timed_run(work.recipe, arguments.overrides, clock)]
    if real_tokens != work.real_tokens:
        say(f"The steps held {real_tokens} tokens, but the work's steps hold {work.real_tokens}.")
        return 1
    clock.write(arguments.result, versions_here())
    return 0


if __name__ == "__main__":
    sys.exit(main())
