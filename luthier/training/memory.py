"""How much memory the process holds now, and held at most."""

from __future__ import annotations

import gc
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import torch

_STATUS = Path("/proc/self/status")


def memory_bytes(device: torch.device) -> int:
    """What training holds now: the process's resident memory, or on a GPU what torch has allocated there."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


def give_back(device: torch.device) -> None:
    """Return to the system what the process has freed and kept for reuse."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)


def peak_memory_bytes(device: torch.device) -> int:
    """The most that it held since the process began; never below what it holds now, which the kernel counts apart."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    return max(_peak_linux() if sys.platform == "linux" else _peak_unix(), memory_bytes(device))


def _peak_linux() -> int:
    """The kernel's own mark. `getrusage` knows it too, but not below what the process that started this one once held."""
    marks = [line for line in _STATUS.read_text("ascii", "replace").splitlines() if line.startswith("VmHWM:")]
    return int(marks[0].split()[1]) * 1024 if marks else _peak_unix()  # some sandboxes have no such mark


def _peak_unix() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class HighWater:
    """The most that the process held since it began, and since a moment, where it may not pass a limit (10^9 bytes)."""

    def __init__(self, device: torch.device, limit_gb: float | None = None) -> None:
        self.device = device
        self.limit_gb = limit_gb
        self._ever = self._start = 0

    def begin(self) -> None:
        """Watch the limit from now on; what is only kept for reuse is returned first where it is beyond that."""
        if self.limit_gb is None:
            return
        if self._is_beyond(memory_bytes(self.device)):
            give_back(self.device)
        self._ever = self.ever()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif sys.platform == "linux":
            with suppress(OSError):  # some systems do not lower the mark: `check` then sees new heights alone
                Path("/proc/self/clear_refs").write_text("5", "ascii")
        self._start = peak_memory_bytes(self.device)

    def check(self) -> None:
        """Raise MemoryError where the limit was passed since `begin`, if only for a moment."""
        peak = peak_memory_bytes(self.device)
        if self._is_beyond(peak if peak > self._start else memory_bytes(self.device)):
            raise MemoryError(f"training.memory_limit_gb is {self.limit_gb:g}")

    def ever(self) -> int:
        """The most that was held since the process began, in bytes."""
        return max(self._ever, peak_memory_bytes(self.device))

    def _is_beyond(self, count: int) -> bool:
        return self.limit_gb is not None and count > self.limit_gb * 10**9
