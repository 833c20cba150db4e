"""Rows → records. One file per form; the list below is the order in which forms are tried.

A form is recognised by its columns and the first 200 rows. A form with more structure goes before one with less, so that
Alpaca's instruction and output are not taken for a bare prompt and completion; of several readings of the same rows the
more natural goes first, so that labels are told apart before they are written. An objective tries those forms alone that
give what it learns from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

from luthier.data.formats import (
    alpaca,
    chat,
    choices,
    classification,
    completion,
    data_to_text,
    fields,
    guanaco,
    hh_rlhf,
    oasst,
    preferences,
    prompts,
    qa,
    rankings,
    rationale,
    scores,
    sharegpt,
    similar,
    sql,
    summary,
    tags,
    text,
    verdicts,
)
from luthier.data.formats.table import FurtherForm, Recognition, Table, tabulate
from luthier.data.formats.template import by_template
from luthier.data.formats.unsuited import OBJECTIVES, evaluation, likeness, objection
from luthier.data.formats.weights import weighed
from luthier.data.reading import Row
from luthier.data.settings import NO_WISHES, FormatName, Wishes
from luthier.errors import DataError
from luthier.types import Gives, Origin, Record

_FEW = 0.1
"""The share of rows at fault up to which the rows are thought to be wrong, and not what they were taken for."""
MOST_SHOWN = 20


class Form(Protocol):
    """What each file here holds; one that reads rows in another way too holds a `FurtherForm` beside it."""

    @property
    def NAME(self) -> FormatName: ...

    @property
    def GIVES(self) -> Gives: ...

    @property
    def COLUMNS(self) -> str: ...

    def recognise(self, table: Table) -> Recognition | None:
        """How these rows are read, if they have this form."""


FORMS: tuple[Form, ...] = (
    oasst,
    oasst.RANKINGS,
    oasst.PAIRS,
    rankings,
    hh_rlhf,
    preferences,
    verdicts,
    chat,
    sharegpt,
    guanaco,
    tags,
    choices,
    rationale,
    sql,
    summary,
    qa,
    alpaca,
    data_to_text,
    fields,
    similar,
    completion,
    classification,
    scores,
    qa.DECIDED,
    text,
)
_WITH_PROMPTS: tuple[Form, ...] = (*FORMS, prompts)
_ASKED: tuple[Form, ...] = tuple(
    FurtherForm(form.NAME, "prompts", form.COLUMNS, partial(prompts.recognise_asked, form.recognise))
    for form in FORMS
    if form.GIVES in ("text", "preferences") and form is not text
)


_PREFERRED: tuple[Form, ...] = tuple(
    FurtherForm(form.NAME, "text", form.COLUMNS, partial(preferences.recognise_preferred, form.recognise))
    for form in (hh_rlhf, preferences)
)
"""Pairs of which the better answer alone is learned: read so where a recipe names the form, as it then means to."""


def forms_for(takes: Gives) -> tuple[Form, ...]:
    """The forms that give what an objective learns from, in the order in which they are tried.

    Prompts are all that comes before answers too.
    """
    own = tuple(form for form in _WITH_PROMPTS if serves(form.GIVES, takes))
    return (*own, *_ASKED, prompts.BY_NAME) if takes == "prompts" else own


def _possible(format: FormatName, takes: Gives) -> tuple[Form, ...]:
    """The forms among which a recipe leaves the choice."""
    if format == "auto":
        return forms_for(takes)
    named = (*forms_for(takes), *(_PREFERRED if takes == "text" else ()))
    return tuple(form for form in named if format == form.NAME)


def serves(given: Gives, takes: Gives) -> bool:
    """Whether rows that give one thing are what an objective learns from: a pair is a ranking of two."""
    return given == takes or (takes == "rankings" and given == "preferences")


def gives(format: FormatName, takes: Gives, wishes: Wishes = NO_WISHES) -> bool:
    """Whether rows of a form, if they are of it, give what an objective learns from; "auto" may."""
    if wishes.template is not None:
        return serves(wishes.template.gives, takes)
    return bool(_possible(format, takes))


def objectives_for(format: FormatName, wishes: Wishes = NO_WISHES) -> tuple[str, ...]:
    """The kinds of objective that rows of a form are made for."""
    given = (
        [form.GIVES for form in _WITH_PROMPTS if format == form.NAME]
        if wishes.template is None
        else [wishes.template.gives]
    )
    return tuple(dict.fromkeys(OBJECTIVES[gives] for gives in given))


@dataclass(frozen=True)
class Recognised:
    """Records with their origins; the form they had, why it was taken for that, and what a user should know."""

    name: FormatName
    reason: str
    notes: tuple[str, ...]
    records: list[tuple[Record, Origin]]


def to_records(
    rows: Sequence[Row], format: FormatName, takes: Gives = "text", wishes: Wishes = NO_WISHES
) -> Recognised:
    """Every row as the records that it holds. With "auto" the form is recognised; a name takes the rows as that form.

    takes: what is to be learned from. wishes: which reading, where rows have several.

    Raises: DataError, if no form fits, or for the first row at fault; it says how many more there are.
    """
    form = reading_of(rows, format, takes, wishes)
    records, found = _convert(rows, form.to_records)
    if found:
        raise summary_of(found, len(rows), form.name)
    if not records:
        raise nothing_in(rows[0].origin.file, form.name)
    holding = {(origin.file, origin.line) for _, origin in records}
    num_empty = sum((row.origin.file, row.origin.line) not in holding for row in rows)
    return Recognised(form.name, form.reason, (*form.notes, *said_of_empty(num_empty)), records)


@dataclass(frozen=True)
class Reading:
    """How rows are read: the form, why they were taken for it, what a user should know, and what becomes of a row."""

    name: FormatName
    reason: str
    notes: tuple[str, ...]
    to_records: Callable[[Row], Sequence[Record]]


def reading_of(rows: Sequence[Row], format: FormatName, takes: Gives = "text", wishes: Wishes = NO_WISHES) -> Reading:
    """How rows that begin so are read; arguments and errors as those of `to_records`, but for single rows."""
    table = tabulate(rows, wishes)
    name, recognition = _recognise(table, format, takes)
    notes = list(recognition.notes)
    ignored = [column for column in table.kinds if column not in recognition.reads]
    if ignored:
        notes.insert(0, f"Ignored columns: {', '.join(ignored)}.")
    reason = recognition.reason if format == "auto" else "data.format says so"
    return Reading(name, reason, tuple(notes), recognition.to_records)


def faults(
    rows: Sequence[Row], format: FormatName, takes: Gives = "text", wishes: Wishes = NO_WISHES
) -> list[DataError]:
    """What is wrong with the rows: one error for each row at fault, in order, or one alone if no form fits."""
    try:
        _, recognition = _recognise(tabulate(rows, wishes), format, takes)
    except DataError as error:
        return [error]
    return _convert(rows, recognition.to_records)[1]


class Natural(NamedTuple):
    """The form that rows are most naturally read as, what they then give, and why.

    objective: the kind of objective that they are made for. to_records: what reads a row.
    """

    name: FormatName
    gives: Gives
    reason: str
    objective: str
    to_records: Callable[[Row], Sequence[Record]]


def recognise_any(rows: Sequence[Row], format: FormatName = "auto", wishes: Wishes = NO_WISHES) -> Natural:
    """What rows are where no objective asks: labels rather than texts to write, preferences rather than good answers.

    Raises: DataError, if no form fits, or if all that fit would teach something wrong.
    """
    table = tabulate(rows, wishes)
    file = _file_of(table)
    if wishes.template is not None:
        made = by_template(table, wishes.template)
        return Natural(
            "template", wishes.template.gives, made.reason, OBJECTIVES[wishes.template.gives], made.to_records
        )
    refusal: DataError | None = None
    for form in FORMS:
        if format not in ("auto", form.NAME):
            continue
        try:
            recognition = _unless_unsuited(table, form, format, file)
        except DataError as error:
            refusal = refusal or error
            continue
        if recognition is not None:
            reason = recognition.reason if format == "auto" else "data.format says so"
            return Natural(form.NAME, form.GIVES, reason, OBJECTIVES[form.GIVES], recognition.to_records)
    raise refusal or _nothing_fits(table, format, file, None)


def _convert(
    rows: Sequence[Row], to_records: Callable[[Row], Sequence[Record]]
) -> tuple[list[tuple[Record, Origin]], list[DataError]]:
    records: list[tuple[Record, Origin]] = []
    found: list[DataError] = []
    for row in rows:
        try:
            records += [(record, row.origin) for record in to_records(row)]
        except DataError as error:
            found.append(error)
    return records, found


def said_of_empty(num_rows: int) -> list[str]:
    """A note on rows that hold nothing to learn, as trees without ranked siblings hold no pairs."""
    return [f"{num_rows} rows hold nothing of what is to be learned."] if num_rows else []


def nothing_in(file: str, name: FormatName) -> DataError:
    """That no row holds what is to be learned."""
    none = f"the rows have the form {name}, but none of them holds what is to be learned."
    return DataError(none, "Give rows that do, such as trees in which replies are ranked.", file=file)


def summary_of(found: list[DataError], num_rows: int, name: FormatName) -> DataError:
    """The first fault, with the number of all and where the first of them are."""
    first = found[0]
    if len(found) == 1:
        return first
    several_files = any(error.file != first.file for error in found)
    places = [error.where.partition(", field")[0] if several_files else str(error.line) for error in found[:MOST_SHOWN]]
    more = ", …" if len(found) > MOST_SHOWN else ""
    said = f"{first.found} In all {len(found)} of {num_rows} rows are at fault as {name} (lines {', '.join(places)}{more})."
    mend = first.mend
    if name != "template" and len(found) <= _FEW * num_rows:  # a file alone does not say what a recipe's template takes
        named = "FILE" if several_files else first.file
        mend = f"{mend} Or leave out all that are at fault: luthier check {named} --fix OUT --drop-faulty."
    return DataError(said, mend, file=first.file, line=first.line, field=first.field)


# ── recognition ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _recognise(table: Table, format: FormatName, takes: Gives) -> tuple[FormatName, Recognition]:
    file = _file_of(table)
    template = table.wishes.template
    if template is not None:
        if not serves(template.gives, takes):
            found = f"data.template makes rows that give {template.gives}, and the objective learns from {takes}."
            raise DataError(found, "Change data.template, or objective.kind.", field="data.template")
        return "template", by_template(table, template)
    for form in _possible(format, takes):
        recognition = _unless_unsuited(table, form, format, file)
        if recognition is not None:
            return form.NAME, recognition
    raise _nothing_fits(table, format, file, takes)


def _file_of(table: Table) -> str:
    if not table.rows:
        raise DataError("there are no rows.", "Give at least one row.")
    return table.rows[0].origin.file


def _unless_unsuited(table: Table, form: Form, format: FormatName, file: str) -> Recognition | None:
    """How a form reads the rows, if it does. Raises: DataError, where learning that would teach something wrong."""
    recognition = form.recognise(table)
    if recognition is None:
        return None
    against = objection(table, form.NAME, form.GIVES) if format == "auto" else None
    if against is None:
        return weighed(table, recognition, form.GIVES)
    found = f"the rows look like {form.NAME} ({recognition.reason}), but {against.found}"
    raise DataError(found, against.mend, file=file)


def _nothing_fits(table: Table, format: FormatName, file: str, takes: Gives | None) -> DataError:
    """That rows have no form; takes: what an objective learns from, None where none asks."""
    columns = ", ".join(f"{column[:60]} ({kind})" for column, kind in table.kinds.items()) or "none"
    measures = evaluation(table)
    if measures is not None:
        found = f"the rows cannot be learned from: {measures.found} Columns found: {columns}."
        return DataError(found, measures.mend, file=file)
    if format != "auto":
        expected = "; ".join(dict.fromkeys(form.COLUMNS for form in _WITH_PROMPTS if format == form.NAME))
        found = f"data.format is {format}, but the rows do not have that form. Columns found: {columns}."
        return DataError(found, f"Expected columns: {expected}. Or set data.format to auto.", file=file)
    if takes is not None and takes != "text":
        expected = "; ".join(f"{form.NAME}: {form.COLUMNS}" for form in forms_for(takes))
        found = f"{_LACKING[takes]}. Columns found: {columns}."
        return DataError(found, f"{_MENDS[takes]} Expected columns: {expected}.", file=file)
    doubt = likeness(table)
    asked = " that sft learns from" if takes == "text" else ""
    found = f"the rows fit no form{asked}. Columns found: {columns}."
    seems = f" {doubt.found[:1].upper()}{doubt.found[1:]}" if doubt.found else ""
    expected = "; ".join(f"{form.NAME}: {form.COLUMNS}" for form in (chat, completion, alpaca, sharegpt, text))
    return DataError(
        f"{found}{seems}", f"{doubt.mend} Expected columns: {expected}; or others with data.template.", file=file
    )


_LACKING: dict[Gives, str] = {
    "labels": "the rows are no texts with classes",
    "scores": "the rows are no texts with numbers",
    "tags": "the rows are no words with tags",
    "choices": "the rows are no questions with options",
    "similar": "the rows are no texts with others that mean the same",
    "preferences": "the rows are no pairs of a better and a worse answer",
    "verdicts": "the rows are no answers that are said to be good or bad",
    "rankings": "the rows are no answers of which one is said to be better than another",
    "prompts": "the rows ask nothing",
}
_MENDS: dict[Gives, str] = {
    "labels": 'Rename the columns to text (text_pair for a second text) and label, or map them with data.template: {text: "{…}", label: "{…}"}; or set objective.kind to sft.',
    "scores": 'Rename the columns to text (text_pair for a second text) and score, or map them with data.template: {text: "{…}", score: "{…}"}.',
    "tags": "Rename the columns to tokens and tags.",
    "choices": "Rename the columns to question, choices and answer.",
    "similar": 'Rename the columns to anchor and positive, or map them with data.template: {anchor: "{…}", positive: "{…}"}.',
    "preferences": 'Rename the columns to prompt, chosen and rejected, or map them with data.template: {prompt: "{…}", chosen: "{…}", rejected: "{…}"}.',
    "verdicts": "Rename the columns to prompt, completion and label.",
    "rankings": "Rename the columns to prompt, chosen and rejected; or to prompt, answers and ranks.",
    "prompts": 'Rename the column that asks to prompt, or make it with data.template: {prompt: "{…}"}.',
}
