"""Weight: how much a row counts in the loss, from a column of that name beside any form.

    {"prompt": "2 + 2 = ", "completion": "4", "weight": 0.5}

A number of 0 or more; a row without one counts 1. Other columns of that name, such as what a parcel weighs in words, are none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from luthier.data.formats.table import Recognition, Table, as_weight, fault, is_number
from luthier.data.reading import Row
from luthier.types import Gives, Record, Weighed

COLUMN = "weight"


def weighed(table: Table, recognition: Recognition, gives: Gives) -> Recognition:
    """How a form reads rows, with the weights that they have. What a model itself writes for prompts has none."""
    column = next((each for each in table.kinds if each.lower() == COLUMN), None)
    if column is None or column in recognition.reads or gives == "prompts" or not table.mostly(column, is_number):
        return recognition
    read = recognition.to_records

    def to_records(row: Row) -> Sequence[Record]:
        weight = 1.0 if (value := row.values.get(column)) is None else as_weight(row, column, value)
        return tuple(weighed_record(row, column, record, weight) for record in read(row))

    note = f"{column} says how much a row counts in the loss."
    return Recognition(recognition.reason, recognition.reads | {column}, to_records, (*recognition.notes, note))


def weighed_record(row: Row, field: str, record: Record, weight: float) -> Record:
    """The record with the weight of its row. Raises: DataError, where it can have none but 1."""
    if weight == 1:
        return record
    if not isinstance(record, Weighed):
        found = f"the weight is {weight:g}, and what is learned from such rows counts them all alike."
        raise fault(row, field, found, "Take the weights out, or give the column another name if it is something else.")
    return replace(record, weight=weight)
