"""Records as lines of JSON, and back, the same in every field.

What JSON has not, but a Parquet file may hold in a tool's schema (bytes, dates, durations, decimal numbers), is an object of
one key that tells what it is.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from luthier.data.facts import KINDS
from luthier.errors import DataError
from luthier.types import Completion, Conversation, Message, Preference, Prompt, Ranking, Record, Verdict

_MARK = "\x00luthier"
_WRITERS: tuple[tuple[type, str, Callable[[Any], str]], ...] = (
    (bytes, "bytes", lambda value: base64.b85encode(value).decode()),
    (datetime, "datetime", datetime.isoformat),
    (date, "date", date.isoformat),
    (time, "time", time.isoformat),
    (timedelta, "timedelta", lambda value: str(value // timedelta(microseconds=1))),
    (Decimal, "decimal", str),
)
_READERS: dict[str, Callable[[str], Any]] = {
    "bytes": base64.b85decode,
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "timedelta": lambda text: timedelta(microseconds=int(text)),
    "decimal": Decimal,
}


def record_line(record: Record) -> bytes:
    """A record as one line of JSON, its end included. Raises: DataError, for a value that cannot be kept."""
    return json.dumps(_values(record), ensure_ascii=True, default=_marked).encode() + b"\n"


def record_of(line: bytes) -> Record:
    """The record that a line holds."""
    return _record(json.loads(line, object_hook=_unmarked))


def _values(record: Record) -> list[Any]:
    kind = KINDS.index(type(record))
    match record:
        case Conversation(messages, tools, weight):
            turns = [[m.role, m.content, m.learn, [[k, v] for k, v in m.extra], *_other(m.weight)] for m in messages]
            return [kind, turns, list(tools), *_other(weight)]
        case Preference(chosen, rejected, margin, probability):
            return [kind, _values(chosen), _values(rejected), margin, probability]
        case Ranking(answers, places):
            return [kind, [_values(answer) for answer in answers], list(places)]
        case Verdict(answered, is_good):
            return [kind, _values(answered), is_good]
        case Prompt(Conversation() as asked):
            return [kind, _values(asked)]
        case _:
            return [kind, *vars(record).values()]


def _other(weight: float) -> list[float]:
    """A weight, where it is another than most have."""
    return [] if weight == 1 else [weight]


def _record(values: list[Any]) -> Record:
    kind, *fields = values
    made = KINDS[kind]
    if made is Conversation:
        messages, tools, *more = fields
        return Conversation(tuple(_message(*parts) for parts in messages), tuple(tools), *more)
    if made is Preference:
        chosen, rejected, *more = fields
        return Preference(_answered(chosen), _answered(rejected), *more)
    if made is Ranking:
        answers, places = fields
        return Ranking(tuple(_answered(answer) for answer in answers), tuple(places))
    if made is Verdict:
        return Verdict(_answered(fields[0]), fields[1])
    if made is Prompt:
        return Prompt(fields[0] if isinstance(fields[0], str) else _chat(fields[0]))
    record: Record = made(*(tuple(field) if isinstance(field, list) else field for field in fields))
    return record


def _message(role: str, content: str, learn: bool | None, extra: list[list[Any]], weight: float = 1.0) -> Message:
    return Message(role, content, learn, tuple((key, value) for key, value in extra), weight)


def _answered(values: list[Any]) -> Conversation | Completion:
    answered = _record(values)
    assert isinstance(answered, Conversation | Completion)
    return answered


def _chat(values: list[Any]) -> Conversation:
    chat = _record(values)
    assert isinstance(chat, Conversation)
    return chat


def _marked(value: Any) -> dict[str, str]:
    for kind, name, write in _WRITERS:
        if isinstance(value, kind):
            return {_MARK + name: write(value)}
    raise DataError(
        f"The row holds a value of the type {type(value).__name__}, which cannot be kept on the disk.",
        "Write it as text or as a number.",
    )


def _unmarked(values: dict[str, Any]) -> Any:
    if len(values) == 1:
        ((name, text),) = values.items()
        if name.startswith(_MARK):
            return _READERS[name.removeprefix(_MARK)](text)
    return values
