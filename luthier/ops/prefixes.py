"""What rows of tokens begin with in common."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from luthier.types import IntArray


def common_prefix(rows: Sequence[IntArray], most: int) -> int:
    """How many tokens the rows begin with in common, at most `most`."""
    for row in rows[1:]:
        (differing,) = np.nonzero(row[:most] != rows[0][:most])
        most = int(differing[0]) if len(differing) else most
    return most
