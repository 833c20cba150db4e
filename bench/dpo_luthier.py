"""One contestant of `bench.dpo`: Luthier, in a process of its own."""

from __future__ import annotations

import sys

from bench.luthier_side import timed_run, versions_here
from bench.side import begin


def main() -> int:
    """Do the work once and write what was measured."""
    arguments = begin("Luthier, DPO", own_allocator=True)
    # only now, so that the allocator is set before torch takes its first memory
    from bench.clock import StepClock
    from bench.pairs import read_pairs

    clock = StepClock()
    timed_run(read_pairs(arguments.work).recipe, arguments.overrides, clock)
    clock.write(arguments.result, versions_here())
    return 0


if __name__ == "__main__":
    sys.exit(main())
