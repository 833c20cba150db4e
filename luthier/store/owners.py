"""Which process a half-written file or a running run belongs to, and whether that process is still there.

A tag is `HOST-PID-BIRTH`, such as `9f3a1c-4711-8123456`: six hexadecimal digits of the machine's name, the process id, and
the clock ticks at which the process began, so that another process that later gets the same id is not taken for it.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
from pathlib import Path

import psutil

TAG_PATTERN = r"[0-9a-f]{6}-\d+-\d+"


def owner_tag() -> str:
    """The tag of this process."""
    return f"{_host()}-{os.getpid()}-{_birth(os.getpid())}"


def owner_is_alive(tag: str) -> bool | None:
    """Whether the tagged process still runs; None when it ran on another machine, or when this is no tag."""
    if not re.fullmatch(TAG_PATTERN, tag):
        return None
    host, pid, birth = tag.split("-")
    if host != _host():
        return None
    return psutil.pid_exists(int(pid)) and _birth(int(pid)) == int(birth)


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]


def _birth(pid: int) -> int:
    """Clock ticks from the machine's start to the process's; 0 on systems that have no /proc, and of a dead process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return 0
    # The second field is the program's name in parentheses and may hold spaces; ticks are the 22nd field.
    return int(text.rpartition(")")[2].split()[19])
