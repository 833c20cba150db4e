"""Memory that a thread uses again and again, so that what is needed for a moment is not asked of the system each time.

A fresh large tensor costs a page fault for every 4 KiB that is written to it, more than the work on it. Each thread has its
own buffers: two workers never share one.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor


class Buffers(threading.local):
    """One thread's buffers by purpose; each grows to the largest size that was asked for."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def take(self, purpose: str, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor (count,) of anything, good until the next `take` of this purpose."""
        key = (purpose, dtype, device)
        held = self.held.get(key)
        if held is None or len(held) < count:
            with torch.inference_mode(
                False
            ):  # else what an evaluation asked for first could not be written to in training
                held = self.held[key] = torch.empty(count, dtype=dtype, device=device)
        return held[:count]

    def release(self) -> None:
        """Give the thread's memory back."""
        self.held.clear()
