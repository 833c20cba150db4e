"""Rows made by data.template: text of the recipe's own with the row's columns in it.

    data: {train: rows.csv, template: {prompt: "Q: {question}\\n", completion: "{answer}"}}

`{column}` is the column's value, `{fields.text}` one inside an object, `{{` and `}}` are braces. Text stands as it is,
numbers and truth values as JSON writes them, a list of texts one a line. What may be made together is in `RowTemplate`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from luthier.data.formats.table import Recognition, Table, as_filled_text, as_number, fault
from luthier.data.reading import Row, kind_of
from luthier.data.settings import BRACES, FormatName, RowTemplate
from luthier.errors import DataError
from luthier.types import (
    Completion,
    Conversation,
    Labelled,
    Message,
    PlainText,
    Preference,
    Prompt,
    Record,
    Scored,
    Similar,
)

NAME: FormatName = "template"
WHAT = {"completion": "the answer", "assistant": "the answer"}


def by_template(table: Table, template: RowTemplate) -> Recognition:
    """How rows are read by a template. Raises: DataError, if it names a column that no row has."""
    for name, column in template.columns:
        if column not in table.kinds and column.partition(".")[0] not in table.kinds:
            known = ", ".join(table.kinds)
            near = difflib.get_close_matches(column, list(table.kinds), n=1)
            mend = f"Did you mean {{{near[0]}}}?" if near else "Write one of these, or {{ and }} for braces themselves."
            raise DataError(
                f"data.template.{name} names {{{column}}}, but the columns are {known}.",
                mend,
                file=table.rows[0].origin.file,
                field=f"data.template.{name}",
            )
    heads = [column if column in table.kinds else column.partition(".")[0] for _, column in template.columns]
    return Recognition("data.template says so", frozenset(heads), lambda row: (to_record(row, template),))


def to_record(row: Row, template: RowTemplate) -> Record:
    """What the template makes of a row."""
    made = {name: _filled(row, name, text) for name, text in template.filled.items()}
    pair = made.get("text_pair")
    match made:
        case {"prompt": prompt, "completion": completion}:
            return Completion(prompt, completion)
        case {"prompt": prompt, "chosen": chosen, "rejected": rejected}:
            if chosen == rejected:
                found = "chosen and rejected are the same, so there is nothing to prefer."
                raise fault(row, "data.template.rejected", found, "Leave this row out.")
            return Preference(Completion(prompt, chosen), Completion(prompt, rejected))
        case {"prompt": prompt}:
            return Prompt(prompt)
        case {"user": user, "assistant": assistant}:
            before = (Message("system", made["system"]),) if "system" in made else ()
            return Conversation((*before, Message("user", user), Message("assistant", assistant)))
        case {"text": text, "label": label}:
            return Labelled(text, pair, label.strip())
        case {"text": text, "score": score}:
            return Scored(text, pair, as_number(row, "data.template.score", score.strip()))
        case {"anchor": anchor, "positive": positive}:
            return Similar(anchor, positive, (made["negative"],) if "negative" in made else ())
        case _:
            return PlainText(made["text"])


def _filled(row: Row, name: str, text: str) -> str:
    """A field of the template with the row's values in it; not blank."""
    braces = {"{{": "{", "}}": "}"}
    made = BRACES.sub(lambda part: braces.get(part[0]) or _value(row, part[1].strip()), text)
    return as_filled_text(row, f"data.template.{name}", made, WHAT.get(name, f"the {name}"))


def _value(row: Row, column: str) -> str:
    """The text of a column, or of a place inside an object."""
    value: Any = row.values
    if column in value:
        value = value[column]
    else:
        head, _, rest = column.partition(".")
        for depth, key in enumerate((head, *rest.split("."))) if rest else ((0, column),):
            if not isinstance(value, Mapping) or key not in value:
                there = ", ".join(map(str, value)) if isinstance(value, Mapping) else kind_of(value)
                found = f"{key!r} is missing; there is {there or 'nothing'}."
                raise fault(row, column if depth else head, found, "Add it, or leave this row out.")
            value = value[key]
    return _written(row, column, value)


def _written(row: Row, field: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return "\n".join(value)
    found = f"expected text or a number, found {kind_of(value)}."
    raise fault(row, field, found, "Name a place inside of it ({column.key}), or leave this row out.")
