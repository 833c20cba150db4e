"""Parquet: one row a row, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from luthier.data.reading.content import Content
from luthier.data.reading.rows import Announce, Row
from luthier.errors import DataError
from luthier.types import Origin

_ROWS_AT_ONCE = 1024


def read_parquet(content: Content, announce: Announce) -> Iterator[Row]:
    """The rows, in order."""
    import pyarrow
    from pyarrow import parquet

    if content.packing is not None:
        found = (
            f"this is a Parquet file inside {content.packing}; Parquet is packed in itself, and read from many places."
        )
        raise DataError(found, "Unpack it and give the file that was inside.", file=content.name)
    try:
        with parquet.ParquetFile(content.path) as file:
            batches = (batch.to_pylist() for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE))
            for number, values in enumerate(chain.from_iterable(batches), start=1):
                yield Row(values, Origin(content.name, number))
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        # the last two of values that Python has no type for, such as times to the nanosecond or of the year 20000
        mend = "Check that the file is whole; write it again if not."
        raise DataError(f"this is not a Parquet file that can be read: {error}.", mend, file=content.name) from error
