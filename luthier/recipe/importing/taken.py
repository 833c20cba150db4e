"""What becomes of another tool's recipe: each of its settings ends as one of ours, as needless here, or as lost."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_NOTHING = "nothing here corresponds to it"


@dataclass
class Taken:
    """The other recipe's settings, taken one by one.

    values: what is not taken yet. recipe: ours, as nested plain values. same: their setting and ours. needless: their setting
    and why nothing stands for it. lost: their setting, its value, and why there is no equivalent. untold: what was taken and is
    in none of the three lists yet.
    """

    values: dict[str, Any]
    folder: Path
    recipe: dict[str, Any] = field(default_factory=dict)
    same: list[tuple[str, str]] = field(default_factory=list)
    needless: list[tuple[str, str]] = field(default_factory=list)
    lost: list[tuple[str, Any, str]] = field(default_factory=list)
    untold: dict[str, Any] = field(default_factory=dict)

    def take(self, key: str, default: Any = None) -> Any:
        """The value of a setting, which is then taken and has to be told of; `a.b` is a key within a mapping."""
        inner: Any = self.values
        *outer, last = key.split(".")
        for part in outer:
            inner = inner.get(part) if isinstance(inner, Mapping) else None
        value = inner.pop(last, None) if isinstance(inner, dict) else None
        if value is None:
            return default
        self.untold[key] = value
        return value

    def put(self, ours: str, value: Any, theirs: str = "") -> None:
        """Set a field of our recipe; theirs: the settings that it comes from, none for a default that is written down."""
        inner = self.recipe
        *outer, last = ours.split(".")
        for part in outer:
            inner = inner.setdefault(part, {})
        inner[last] = value
        if theirs:
            self.same.append((theirs, ours))
            self._tell(theirs)

    def move(self, theirs: str, ours: str, default: Any = None) -> None:
        """Put a setting as it is; `default` is written where it was left out."""
        value = self.take(theirs)
        if value is not None:
            self.put(ours, value, theirs)
        elif default is not None:
            self.put(ours, default)

    def lose(self, theirs: str, value: Any, why: str) -> None:
        """Say that a setting has no equivalent."""
        self.lost.append((theirs, value, why))
        self._tell(theirs)

    def spare(self, theirs: str, why: str) -> None:
        """Say that nothing has to stand for a setting."""
        self.needless.append((theirs, why))
        self._tell(theirs)

    def leave(self, needless: Mapping[str, str]) -> None:
        """Take what needs no equivalent: setting → why."""
        for key, why in needless.items():
            if self.take(key) is not None:
                self.spare(key, why)

    def lose_rest(self, block: str, inner: Any, why: str = _NOTHING) -> None:
        """Say that all that is left of a block, a mapping or list of them, has no equivalent; what says nothing is passed over."""
        if isinstance(inner, Mapping):
            for key, value in inner.items():
                self.lose_rest(f"{block}.{key}", value, why)
        elif inner not in (None, "", []):
            self.lose(block, inner, why)
        self._tell(block)

    def finish(self) -> None:
        """Everything that nobody took, or that was taken and came to nothing, has no equivalent."""
        for key, value in {**self.untold, **self.values}.items():
            if value not in (None, "", [], {}) and not (value is False and key in self.untold):
                self.lose(key, value, _NOTHING)
        self.values, self.untold = {}, {}

    def _tell(self, theirs: str) -> None:
        for key in re.split(r", | × ", theirs):
            self.untold.pop(key, None)


def number(value: Any) -> Any:
    """A number that YAML left as text, such as 1e-4 by another reading; else as it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def names(value: Any) -> list[str]:
    """Names given as a list or as text with commas."""
    parts = value if isinstance(value, list) else str(value).split(",")
    return [str(part).strip() for part in parts if str(part).strip()]
