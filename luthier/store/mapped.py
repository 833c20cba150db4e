"""Files that are mapped into memory: what was read of them can be let go of, since the system reads it again where it is asked for."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from pathlib import Path

_MAPS = Path("/proc/self/maps")
_PAGEOUT = 21  # Linux's MADV_PAGEOUT: it changes nothing of what is read, even if it was written to


def forget_mapped(files: Iterable[Path]) -> None:
    """Let go of the pages of these files, as far as they are mapped; elsewhere than on Linux, do nothing.

    Such pages count among what the process holds until the files are closed.
    """
    if sys.platform != "linux":
        return
    madvise = ctypes.CDLL(None).madvise
    places = {str(file.resolve()) for file in files}
    for line in _MAPS.read_text("utf-8", errors="surrogateescape").splitlines():
        span, *_, path = line.split(maxsplit=5)
        if path in places:
            start, end = (int(bound, 16) for bound in span.split("-"))
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _PAGEOUT)
