"""Examples that are drawn: what an objective makes of a text anew in each epoch, and once for all of a held-out one.

A draw depends on the run's seed, the epoch and the document (of a text drawn as a whole: its first piece), and on nothing else:
not on the order of rows, the number of workers, or whether the run was stopped in between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from luthier.corruption.keyed import generator
from luthier.errors import DataError
from luthier.ops.draws import salt_of
from luthier.types import Example

_HELD_OUT = salt_of("held-out texts")

Vary = Callable[[Example, int], Example]
"""The example of a text in an epoch."""


@dataclass(frozen=True)
class Drawing:
    """What is done to texts, and the seed of its draws."""

    corrupt: Callable[[Example, np.random.Generator], Example]
    seed: int

    def __call__(self, text: Example, epoch: int) -> Example:
        """The example of a training text in an epoch. Raises: DataError, at its line, for a text that gives none."""
        return self._drawn(text, epoch, text.drawn_as, 0)

    def held_out(self, text: Example, first: int = 0) -> Example:
        """The example of a text that is held out, always the same. Raises as `__call__`.

        first: the number of the file's first document, so that a file gives the same examples wherever its numbers begin.
        """
        return self._drawn(text, 0, text.drawn_as - first, _HELD_OUT)

    def _drawn(self, text: Example, epoch: int, number: int, salt: int) -> Example:
        try:
            return self.corrupt(text, generator(self.seed, epoch, number, salt))
        except DataError as error:
            origin = text.origin
            raise DataError(error.found, error.mend, file=origin.file, line=origin.line, field=error.field) from error
