"""Paths as people write them."""

from __future__ import annotations

from pathlib import Path


def expanded(name: str | Path) -> Path:
    """The path with `~` as the home folder; one that begins with the `~name` of nobody here is left as it is."""
    path = Path(name)
    try:
        return path.expanduser()
    except RuntimeError:  # no such user, or one without a home
        return path
