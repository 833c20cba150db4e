"""Settings that hold for some layers only, by a pattern for the layer's name: peft's `rank_pattern` and `alpha_pattern`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")


def match_pattern(patterns: Mapping[str, Value], layer: str, default: Value) -> Value:
    """What the patterns say for a layer: the first that is the end of its name, from a whole component on."""
    for pattern, value in patterns.items():
        if re.fullmatch(rf"(.*\.)?({pattern})", layer):
            return value
    return default
