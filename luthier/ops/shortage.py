"""Memory that does not suffice, told from other failures.

torch reports it as a RuntimeError on a CPU, as a subclass of that on a GPU, and in the words of the matrix libraries
where these ask for memory of their own; Python and numpy report a MemoryError.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from luthier.errors import ResourceError

_SAID = re.compile(r"out of memory|can't allocate memory|not enough memory|_STATUS_ALLOC_FAILED", re.IGNORECASE)
_ASKED = re.compile(r"tried to allocate ([\d.]+ \w+)", re.IGNORECASE)


def is_shortage(error: BaseException) -> bool:
    """Whether an error says that memory does not suffice."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_SAID.search(str(error))))


@contextmanager
def shortage_told(mend: str) -> Iterator[None]:
    """Within, a shortage of memory is a ResourceError with this mend."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        asked = _ASKED.search(str(error))
        more = f": another {asked[1]} were asked for" if asked else ""
        raise ResourceError(f"There is not enough memory{more}.", mend) from error
