"""What a contestant measures of itself, in its own process."""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Lap:
    """One optimizer step: wall and CPU seconds (of all threads; `system` is the kernel's part) and its loss in nats."""

    wall_seconds: float
    cpu_seconds: float
    system_seconds: float
    page_faults: int
    loss: float


class StepClock:
    """Measures from the end of one step to the end of the next, so whatever a tool does between steps counts."""

    def __init__(self) -> None:
        self.laps: list[Lap] = []
        self.begin()

    def begin(self) -> None:
        """The first step begins now; what memory was held before it is loading."""
        self._loaded_bytes = peak_bytes()
        self._start_lap()

    def _start_lap(self) -> None:
        self._wall = time.perf_counter()
        self._usage = resource.getrusage(resource.RUSAGE_SELF)

    def step_ended(self, loss: float) -> None:
        """A step has ended, and the next one begins."""
        before_wall, before = self._wall, self._usage
        self._start_lap()
        now = self._usage
        system = now.ru_stime - before.ru_stime
        self.laps.append(
            Lap(
                wall_seconds=self._wall - before_wall,
                cpu_seconds=now.ru_utime - before.ru_utime + system,
                system_seconds=system,
                page_faults=now.ru_minflt - before.ru_minflt,
                loss=loss,
            )
        )

    def write(self, path: Path, versions: dict[str, str], **further: Any) -> None:
        """Write the laps, the process's peak memory (in all, and before step 1), torch's threads, the versions and more as JSON."""
        import torch  # here, so that a contestant sets its allocator first

        result = {
            "laps": [asdict(lap) for lap in self.laps],
            "peak_bytes": peak_bytes(),
            "loaded_peak_bytes": self._loaded_bytes,
            "threads": torch.get_num_threads(),
            "versions": {**versions, "torch": str(torch.__version__)},
            **further,
        }
        path.write_text(json.dumps(result), "utf-8")


def peak_bytes() -> int:
    """The most resident memory that this process ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
