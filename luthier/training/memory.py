"""How much memory the process holds now, and held at most."""

from __future__ import annotations

import gc
import sys

import psutil
import torch


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
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return max(peak if sys.platform == "darwin" else peak * 1024, memory_bytes(device))
