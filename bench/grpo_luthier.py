"""One contestant of `bench.grpo`, and each of `bench.ppo_memory`: Luthier, in a process of its own."""

from __future__ import annotations

import sys

from bench.luthier_side import timed_run, versions_here
from bench.side import begin


def main() -> int:
    """Do the work once and write what was measured."""
    arguments = begin("Luthier, learning from rewards", own_allocator=True)
    # only now, so that the allocator is set before torch takes its first memory
    from bench.clock import StepClock
    from bench.prompts import read_prompts

    clock = StepClock()
    told = timed_run(read_prompts(arguments.work).recipe, arguments.overrides, clock)
    further = {name: [step.get(name) for step in told] for name in ("rollout_seconds", "answer_tokens")}
    clock.write(arguments.result, versions_here(), **further)
    return 0


if __name__ == "__main__":
    sys.exit(main())
