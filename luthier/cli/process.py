"""Settings of the whole process, which only a command may make: the allocator, SIGTERM, how much other libraries say."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

# mallopt's parameters, from glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8

_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def quiet_libraries() -> None:
    """Keep the model libraries from printing and from telemetry, unless the user's environment says otherwise.

    To be called before they are imported.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


_LARGE = 4 << 20
"""Bytes from which on a block is mapped for itself where memory matters most."""


def keep_freed_memory(announce: Callable[[str], None], *, saves_memory: bool = False) -> bool:
    """Have glibc keep and reuse big blocks instead of mapping fresh pages for each; return whether this is glibc.

    Training makes and frees the same large tensors over and over; fresh pages cost a fault each. Memory that was once
    needed then stays with the process, holes between what stays included. saves_memory: give the largest blocks back all the
    same. To be called before torch allocates much. Other C libraries are left as they are.
    """
    if not glibc_version():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # one arena: what one worker thread has freed, another can use
    large = (_M_MMAP_THRESHOLD, _LARGE) if saves_memory else (_M_MMAP_MAX, 0)
    settings = ((_M_ARENA_MAX, 1), large, (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 8 << 20))
    for parameter, value in settings:
        mallopt(parameter, value)
    what = f"freed memory below {_LARGE >> 20} MiB a block" if saves_memory else "freed memory"
    announce(f"Allocator: {what} is kept for reuse (--plain-allocator leaves it as it is).")
    return True


def glibc_version() -> str:
    """The version of glibc, such as 2.36; empty where the C library is another."""
    if sys.platform != "linux":
        return ""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (OSError, ValueError):  # musl knows no such name
        return ""
    return version if name == "glibc" else ""


class Terminated(KeyboardInterrupt):
    """SIGTERM, taken as Ctrl-C is."""


class Signals:
    """While entered, Ctrl-C and SIGTERM both break a command off, and `came` is the number of the one that did.

    Libraries that are being imported may turn the KeyboardInterrupt into an error of their own.
    """

    def __init__(self) -> None:
        self.came: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # as nohup and `&` leave Ctrl-C
                    self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.came = number
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
