"""One recipe of `bench.trunk`, or its model alone, in a process of its own: seconds of each epoch, and peak memory."""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.clock import peak_bytes
from bench.side import say
from luthier.cli.process import keep_freed_memory

_FORGET_PEAK = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


class EpochClock:
    """Sums up the wall seconds of each epoch's steps; what happens between steps counts to the later one.

    Not counted, in time and memory, is the loss of the held-out rows, which is computed once after the last step.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.tokens: list[int] = []
        self.begin()

    def begin(self) -> None:
        """The first step begins now; memory is watched from here on."""
        if _FORGET_PEAK.exists():
            _FORGET_PEAK.write_text("5")
        self._since = time.perf_counter()

    def step_ended(self, metrics: dict[str, Any]) -> None:
        """A step has ended, and the next one begins."""
        now = time.perf_counter()
        epoch = math.ceil(metrics["epoch"] - 1e-9)  # how many epochs are done, or begun, with this step
        if epoch > len(self.seconds):
            self.seconds.append(0.0)
        self.losses.append(metrics["loss"])
        self.tokens.append(metrics["real_tokens"])
        if "validation_loss" in metrics:
            self.seconds[-1] += metrics["seconds"]
            self._held_out_loss = metrics["validation_loss"]
        else:
            self.seconds[-1] += now - self._since
            self._peak = held_bytes("VmHWM")
        self._since = now

    def result(self) -> dict[str, Any]:
        """What was measured, up to the end of the last step, and the loss of the held-out rows then."""
        return {
            "seconds": self.seconds,
            "losses": self.losses,
            "tokens": self.tokens,
            "peak_bytes": self._peak,
            "held_out_loss": self._held_out_loss,
        }


def held_bytes(name: str) -> int:
    """What the process holds (VmRSS), or held at most since that was last forgotten (VmHWM); without /proc at most ever."""
    if not _STATUS.exists():
        return peak_bytes()
    line = next(line for line in _STATUS.read_text("utf-8").splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


def main() -> int:
    """Train, or load the model alone, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--load-alone", action="store_true", help="load the model and train nothing")
    arguments = parser.parse_args()
    keep_freed_memory(say)
    # only now, so that the allocator is set before torch takes its first memory
    import torch

    from luthier.recipe import load_recipe
    from luthier.run import train_recipe
    from luthier.tuned import load_base_of
    from luthier.version import __version__

    recipe = load_recipe(arguments.recipe)
    if arguments.load_alone:
        model = load_base_of(recipe, say)
        touched = sum(parameter.numel() for parameter in model.hf.parameters() if parameter.isfinite().all())
        result: dict[str, Any] = {"loaded_bytes": held_bytes("VmRSS"), "parameters": touched}
    else:
        clock = EpochClock()

        def announce(line: str) -> None:
            say(line)
            if not clock.seconds:  # the last line before step 1 comes right before the loop
                clock.begin()

        with tempfile.TemporaryDirectory() as folder:
            train_recipe(recipe, Path(folder) / "run", announce=announce, on_step=clock.step_ended)
        result = clock.result()
    versions = {"luthier": __version__, "torch": str(torch.__version__)}
    arguments.result.write_text(
        json.dumps({**result, "versions": versions, "threads": torch.get_num_threads()}), "utf-8"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
