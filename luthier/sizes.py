"""Numbers of bytes in words, and back."""

from __future__ import annotations

import re

from luthier.errors import UsageError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)
_POWERS = ("", "K", "M", "G", "T")


def readable_bytes(count: float) -> str:
    """A number of bytes with a unit, such as 1.5 GB (powers of 1,000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def parse_size(text: str, option: str) -> int:
    """Bytes from words such as 24GiB, 80 GB or 512M. Raises UsageError, which names the option, for others."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{option} is {text!r}, which is no size.", "Give a number and a unit, such as 24GiB.")
    number, power, is_binary = found.groups()
    unit: int = (1024 if is_binary else 1000) ** _POWERS.index(power.upper())
    return round(float(number) * unit)
