"""`luthier quickstart`: the built-in model tuned on the built-in task."""

from __future__ import annotations

from luthier.cli.options import Json


def quickstart(as_json: Json = False) -> None:
    """Tune the built-in model on support tickets, and show its answers before and after."""
