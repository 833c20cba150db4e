"""Files → rows: each row a dictionary of values, with the file and line that it came from.

    .jsonl .ndjson        one JSON object a line; blank lines are passed over
    .json                 an array of objects; an object that holds one, under data, rows, examples or train or as its only
                          list of objects; or an object that holds each row under its id, which becomes the column `id`
    .csv                  a row a record, separated by commas (or by ; tabs or |, where those do it throughout)
    .tsv .tab             the same separated by tabs; quotes need not be doubled, and \\n is a new line where no backslash
                          stands for anything else
    .parquet .pq          one row a row
    .conll .iob .bio      a word and its tag a line, a blank line after each sentence: a row with the columns `tokens` and
    .iob2 .conllu         `tags`, two lists of texts
    .txt .text            the whole file as one row with the column `text`; but lines that nearly all have the same number
                          of tabs are a table, and words with tags such as B-person are CoNLL
    .md                   the whole file as one row
    a folder              the data files in it, by name; what tells about them (README, LICENSE) is passed over
    data/*.jsonl          the files that fit, by name; ** stands for folders within folders
    owner/name            the split `train` of a data set on the Hugging Face hub; owner/name:configuration:split another part

Text may be packed with gzip, zstd, bzip2 or xz (`rows.jsonl.gz`). It is UTF-8, or UTF-16 with its mark. A name with another
ending is told by its content. Files that can run code when opened (pickles) are refused unread.

Tables may lack the line that names the columns, which is told by comparing it with those below it; the columns are then
called column_1, column_2 and so on. Where a file `classes.txt` beside one names the classes, numbers 1 to K (or 0 to K - 1)
in its column of labels become those names. Whatever is so told is announced.

All but JSON documents and plain text is read as it goes, so files may be larger than the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from luthier.data.hub import fetch_values, is_hub_name
from luthier.data.reading.kinds import READABLE, rows_in
from luthier.data.reading.places import Place, called, fits, is_pattern, places_of
from luthier.data.reading.rows import Announce, OnFault, Row, kind_of
from luthier.errors import DataError
from luthier.types import Origin

__all__ = [
    "READABLE",
    "Announce",
    "OnFault",
    "Row",
    "called",
    "fits",
    "is_pattern",
    "iter_rows",
    "kind_of",
    "read_rows",
]


def read_rows(source: str | tuple[str, ...], announce: Announce, max_rows: int | None = None) -> list[Row]:
    """The rows of `iter_rows` as a list."""
    return list(iter_rows(source, announce, max_rows))


def iter_rows(
    source: str | tuple[str, ...], announce: Announce, max_rows: int | None = None, on_fault: OnFault | None = None
) -> Iterator[Row]:
    """The rows of a file, folder, pattern or hub data set, or of several one after another; at least one of each.

    Args:
        announce: is told what a user would not expect, such as which part of a JSON file is taken.
        max_rows: stop after so many rows; what comes later is not looked at, and of a hub set not fetched.
        on_fault: is told of rows that cannot be read, and reading goes on; then bytes that are not UTF-8 stay in the text
            as U+DC80 to U+DCFF, and halves of characters as they are. None: the first fault is raised.

    Raises: DataError for content that cannot be used, NotFound for a file or hub name that does not exist, NetworkError
    where the hub cannot be reached.
    """
    names = (source,) if isinstance(source, str) else source
    if not names:
        raise DataError("the list of data files is empty.", "Give at least one file.")
    found = [place for name in names for place in ([name] if is_hub_name(name) else places_of(name, announce))]
    num_rows = 0
    for place in found:
        limit = None if max_rows is None else max_rows - num_rows
        if limit == 0:
            return
        before = num_rows
        faults: list[DataError] = []
        for row in _rows_at(place, announce, limit, _counted(on_fault, faults)):
            num_rows += 1
            yield row
        if num_rows == before and not faults:
            name = place if isinstance(place, str) else place.name
            raise DataError("there are no rows in it.", "Give a file that holds at least one row.", file=name)


def _counted(on_fault: OnFault | None, faults: list[DataError]) -> OnFault | None:
    """The same, and the last fault is kept in a list, so that a file with nothing else is not one without rows."""
    if on_fault is None:
        return None

    def told(fault: DataError) -> None:
        faults[:] = [fault]
        on_fault(fault)

    return told


def _rows_at(
    place: str | Place, announce: Announce, limit: int | None, on_fault: OnFault | None = None
) -> Iterator[Row]:
    """The rows of a hub set or of one file, at most `limit`."""
    if isinstance(place, str):
        for number, values in enumerate(fetch_values(place, announce, limit), start=1):
            yield Row(values, Origin(place, number))
        return
    try:
        num_rows = 0
        for row in islice(rows_in(place.path, place.name, announce, on_fault), limit):
            num_rows += 1
            yield row
    except DataError as error:
        if on_fault is None or num_rows == 0:
            raise
        on_fault(error)  # the rest of a file that is damaged
    except OSError as error:
        found = f"it cannot be read: {error.strerror or error}."
        raise DataError(found, "Check the file's permissions.", file=place.name) from error
