"""One contestant: Luthier through its public Python path, in a process of its own."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.side import begin, say


def main() -> int:
    """Do the work once and write what was measured; 1 if the steps did not hold the rows that they should."""
    arguments = begin("Luthier", own_allocator=True)
    # only now, so that the allocator is set before torch takes its first memory
    import transformers

    from bench.clock import StepClock
    from bench.work import read_work
    from luthier.recipe import load_recipe
    from luthier.run import train_recipe
    from luthier.version import __version__

    work = read_work(arguments.work)
    clock = StepClock()
    real_tokens: list[int] = []

    def announce(line: str) -> None:
        say(line)
        if not clock.laps:  # the last line before step 1 comes right before the loop
            clock.begin()

    def on_step(metrics: dict[str, Any]) -> None:
        clock.step_ended(metrics["loss"])
        real_tokens.append(metrics["real_tokens"])

    recipe = load_recipe(work.recipe, arguments.overrides)
    with tempfile.TemporaryDirectory() as folder:
        train_recipe(recipe, Path(folder) / "run", announce=announce, on_step=on_step)
    if real_tokens != work.real_tokens:
        say(f"The steps held {real_tokens} tokens, but the work's steps hold {work.real_tokens}.")
        return 1
    versions = {"luthier": __version__, "transformers": transformers.__version__}
    clock.write(arguments.result, versions)
    return 0


if __name__ == "__main__":
    sys.exit(main())
