"""Libraries that some graders need and that the core does not install."""

from __future__ import annotations

import importlib
from typing import Any

from luthier.errors import UsageError


def needed(name: str) -> Any:
    """The module. Raises: UsageError that says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"This needs the library {name} ({error}).", "Install it: pip install 'luthier[grading]'"
        ) from None
