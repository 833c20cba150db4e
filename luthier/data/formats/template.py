"""Rows made by data.template: text of the recipe's own with the row's columns in it.

    data: {train: rows.csv, template: {prompt: "Q: {question}\\n", completion: "{answer}"}}

`{column}` is the column's value, `{fields.text}` one inside an object, `{{` and `}}` are braces. Text stands as it is,
numbers and truth values as JSON writes them, a list of texts one a line. What may be made together is in `RowTemplate`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from luthier.data.formats import choices, rankings, tags
from luthier.data.formats.table import Recognition, Table, as_filled_text, as_number, as_weight, fault, tabulate
from luthier.data.formats.weights import weighed_record
from luthier.data.reading import Row, kind_of
from luthier.data.settings import BRACES, FormatName, RowTemplate
from luthier.errors import DataError
from luthier.types import (
    Choice,
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
    Verdict,
)

NAME: FormatName = "template"
WHAT = {"completion": "the answer", "assistant": "the answer"}
VERDICTS = {
    **dict.fromkeys(("true", "yes", "good", "1", "1.0"), True),
    **dict.fromkeys(("false", "no", "bad", "0", "0.0", "-1", "-1.0"), False),
}
_ALONE = re.compile(r"\{([^{}]*)\}")


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
    if template.options is not None:
        start = _start(table, template)
        notes = ("The answers of data.template.answer count from 1.",) if start == 1 else ()
        reads = frozenset(heads)
        return Recognition("data.template says so", reads, lambda row: (_choice(row, template, start),), notes)
    if template.tokens is not None or template.answers is not None:
        return _of_lists(table, template, frozenset(heads))
    return Recognition("data.template says so", frozenset(heads), lambda row: (to_record(row, template),))


def to_record(row: Row, template: RowTemplate) -> Record:
    """What the template makes of a row, but for options."""
    made = {name: _filled(row, name, text) for name, text in template.filled.items() if isinstance(text, str)}
    weight = made.pop("weight", None)
    record = _record(row, made)
    if weight is None:
        return record
    field = "data.template.weight"
    return weighed_record(row, field, record, as_weight(row, field, weight.strip()))


def _record(row: Row, made: Mapping[str, str]) -> Record:
    pair = made.get("text_pair")
    match made:
        case {"prompt": prompt, "completion": completion, "verdict": verdict}:
            return Verdict(Completion(prompt, completion), _is_good(row, verdict))
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


def _is_good(row: Row, verdict: str) -> bool:
    said = VERDICTS.get(verdict.strip().lower())
    if said is None:
        found = f"expected true or false, found {verdict.strip()[:40]!r}."
        mend = f"Write one of {', '.join(VERDICTS)}, or leave this row out."
        raise fault(row, "data.template.verdict", found, mend)
    return said


# ── options ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _choice(row: Row, template: RowTemplate, start: int) -> Choice:
    """A question with options. start: what the answers count from."""
    named, places = _asked(row, template)
    columns = choices.Columns(("data.template.question",), places, "data.template.answer", start)
    return choices.to_record(Row(named, row.origin), columns)


def _asked(row: Row, template: RowTemplate) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the template says of a row, each part under the name of its field, and under which names the options are."""
    assert template.question is not None, "options come with a question and an answer"
    assert template.answer is not None
    assert template.options is not None
    named: dict[str, Any] = {
        "data.template.question": _filled(row, "question", template.question),
        "data.template.answer": _as_it_is(row, template.answer),
    }
    if isinstance(template.options, str):
        named["data.template.options"] = _as_it_is(row, template.options)
        return named, ("data.template.options",)
    options = {f"data.template.options[{index}]": _made(row, text) for index, text in enumerate(template.options)}
    return {**named, **options}, tuple(options)


def _start(table: Table, template: RowTemplate) -> int:
    """Whether the answers count from 0 or from 1, as far as rows tell; what is wrong with a row is told later."""
    pairs = []
    for row in table.rows:
        try:
            named, places = _asked(row, template)
        except DataError:
            continue
        number = choices.number_in(named["data.template.answer"])
        if number is not None:
            pairs.append((number, choices.how_many(Row(named, row.origin), places)))
    return choices.counted_from(pairs)


# ── lists ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _of_lists(table: Table, template: RowTemplate, reads: frozenset[str]) -> Recognition:
    """Words with a tag for each, or answers with their places: read as rows are that have them under these names."""
    if template.tokens is not None:
        found = tags.recognised(tabulate(_able(table, template)), "data.template.tokens", "data.template.tags")
        return replace(
            found,
            reason="data.template says so",
            reads=reads,
            to_records=lambda row: found.to_records(_lists(row, template)),
        )
    places = {name: f"data.template.{name}" for name in ("ranks", "scores") if name in template.filled}
    columns = rankings.Columns("data.template.prompt", "data.template.answers", **places)
    return Recognition(
        "data.template says so", reads, lambda row: (rankings.to_record(_lists(row, template), columns),)
    )


def _able(table: Table, template: RowTemplate) -> list[Row]:
    """The rows that the template fills, by its own names; what is wrong with the others is told later."""
    found = []
    for row in table.rows:
        with suppress(DataError):
            found.append(_lists(row, template))
    return found


def _lists(row: Row, template: RowTemplate) -> Row:
    """What the template says of a row, each part under the name of its field."""
    named: dict[str, Any] = {}
    for name, text in template.filled.items():
        if isinstance(text, str):
            whole = _as_it_is(row, text)
            named[f"data.template.{name}"] = whole if isinstance(whole, list) else _made(row, text)
        else:
            named[f"data.template.{name}"] = [_made(row, each) for each in text]
    return Row(named, row.origin)


# ── values ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _filled(row: Row, name: str, text: str) -> str:
    """A field of the template with the row's values in it; not blank."""
    return as_filled_text(row, f"data.template.{name}", _made(row, text), WHAT.get(name, f"the {name}"))


def _made(row: Row, text: str) -> str:
    """A text with the row's values in it."""
    braces = {"{{": "{", "}}": "}"}
    return BRACES.sub(lambda part: braces.get(part[0]) or _value(row, part[1].strip()), text)


def _as_it_is(row: Row, text: str) -> Any:
    """The value of the one column that a text names; where it says more, the text with the row's values in it."""
    alone = _ALONE.fullmatch(text.strip())
    return _made(row, text) if alone is None else _raw(row, alone[1].strip())


def _value(row: Row, column: str) -> str:
    """The text of a column, or of a place inside an object."""
    return _written(row, column, _raw(row, column))


def _raw(row: Row, column: str) -> Any:
    """The value of a column, or of a place inside an object."""
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
    return value


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
