"""What a container may still take of its machine's memory, as Linux's control groups say it.

Version 2: https://docs.kernel.org/admin-guide/cgroup-v2.html, `memory.max`, `memory.current`; version 1:
https://docs.kernel.org/admin-guide/cgroup-v1/memory.html, `memory.limit_in_bytes`, `memory.usage_in_bytes`. What is held counts files
that the system keeps in memory for as long as nobody needs the room; `memory.stat` says how much of that is idle.
"""

from __future__ import annotations

from pathlib import Path

_PROC, _ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_NO_LIMIT = 2**60


def container_room(membership: Path = _PROC, root: Path = _ROOT) -> int | None:
    """The bytes that this process's group, and every group around it, may still take; None where there is no bound.

    membership: the file that says which groups the process is in. root: where the groups are.
    """
    found = [room for folder, names in _groups(membership, root) if (room := _room_in(folder, *names)) is not None]
    return min(found, default=None)


_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _groups(membership: Path, root: Path) -> list[tuple[Path, tuple[str, str, str]]]:
    """The folders of the process's groups, from its own up to the root, and the names of their files.

    In a container the path of a group may be that of the machine, which is not there: the root then is the container's own.
    """
    try:
        lines = membership.read_text("utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, names = (root / "memory", _V1) if controllers else (root, _V2)
        own = Path(path.lstrip("/"))
        found += [(top / part, names) for part in (own, *own.parents)]
    return found


def _room_in(folder: Path, limit: str, usage: str, idle: str) -> int | None:
    most, held = _number(folder / limit), _number(folder / usage)
    if most is None or held is None or most >= _NO_LIMIT:
        return None
    return max(most - held + _idle(folder / "memory.stat", idle), 0)


def _number(file: Path) -> int | None:
    """The number in a file; None without it, and for `max`."""
    try:
        text = file.read_text("utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _idle(file: Path, name: str) -> int:
    try:
        lines = file.read_text("utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)
