"""Rows that do not have the form of their file: not readable, a field missing, of another type, or in another's place."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

from bench.planted_faults.faults import Change, Draw, Plant, Way
from bench.planted_faults.forms import Values
from bench.planted_faults.sources import (
    ALPACA,
    AMAZON,
    BANKING,
    BITEXT,
    C4,
    COT,
    DPO,
    DUMMY,
    GLAIVE,
    GSM8K,
    KTO,
    LEGAL,
    SCITLDR,
    SICK,
    WNUT,
    XQUAD,
    Source,
    value_at,
    with_value,
)  # fmt: skip

# ── rows that cannot be read ────────────────────────────────────────────────────────────────────────────────────────


def _spoilt(what: str, spoil: Callable[[bytes, Draw], bytes | None]) -> Plant:
    """The row's own bytes, made unreadable; None where they lend themselves to nothing."""

    def plant(draw: Draw) -> Change | None:
        data = spoil(draw.file.records[draw.index].data, draw)
        return None if data is None else Change("", what, data=data)

    return plant


def _without_first_comma(data: bytes, draw: Draw) -> bytes | None:
    place = data.find(b'", "')
    return None if place < 0 else data[: place + 1] + data[place + 2 :]


def _inner_quote(data: bytes, draw: Draw) -> bytes | None:
    place = data.find(b" ", len(data) // 2)
    return None if place < 0 else data[:place] + b' "so called"' + data[place:]


def _unquoted_comma(data: bytes, draw: Draw) -> bytes | None:
    if not data.startswith(b'"') or b'""' in data or b"\n" in data:
        return None
    return data.replace(b'"', b"")


def _bare_token(data: bytes, draw: Draw) -> bytes:
    lines = data.split(b"\n")
    place = draw.rng.randrange(len(lines) - 1)
    lines[place] = lines[place].split(b"\t")[0]
    return b"\n".join(lines)


_JSON_LINES = (GSM8K, SCITLDR, COT, LEGAL, C4)

BROKEN_ROW = (
    Way(_spoilt("the closing brace is missing", lambda data, draw: data[:-1]), _JSON_LINES),
    Way(_spoilt("the line breaks off in the middle", lambda data, draw: data[: len(data) * 3 // 5]), _JSON_LINES),
    Way(_spoilt("a dictionary as Python prints it", lambda data, draw: repr(draw.values).encode()), _JSON_LINES),
    Way(_spoilt("a column too many: a comma without quotes", _unquoted_comma), (BANKING, BITEXT)),
    Way(_spoilt("a comma after the last field", lambda data, draw: data[:-1] + b",}"), _JSON_LINES),
    Way(_spoilt("a quote within a text is not escaped", _inner_quote), _JSON_LINES),
    Way(_spoilt("no comma between two fields", _without_first_comma), (GSM8K, COT, LEGAL)),
    Way(_spoilt("a tab lost: a column too few", lambda data, draw: data.replace(b"\t", b" ", 1)), (SICK,)),
    Way(_spoilt("a column too few: the last is cut off", lambda data, draw: data.rpartition(b",")[0]), (BITEXT, BANKING)),
    Way(_spoilt("a token without its tag", _bare_token), (WNUT,)),
    Way(_spoilt("an array, not an object", lambda data, draw: json.dumps(list(draw.values.values())).encode()), _JSON_LINES),
    Way(_spoilt("a column too many", lambda data, draw: data + b"\tNEUTRAL"), (SICK, AMAZON)),
)  # fmt: skip


# ── a field missing ─────────────────────────────────────────────────────────────────────────────────────────────────

_NEEDED: dict[Source, tuple[str, ...]] = {
    GSM8K: ("question", "answer"),
    SCITLDR: ("source", "target"),
    COT: ("input", "answer"),
    LEGAL: ("answer",),
    C4: ("text",),
    ALPACA: ("instruction", "output"),
    DPO: ("chosen", "rejected"),
    KTO: ("label", "messages"),
    DUMMY: ("conversations[1].value", "conversations[0].from"),
    GLAIVE: ("conversations[1].value",),
    XQUAD: ("question", "answers[0].text"),
}


def _holder(row: Values, path: str) -> tuple[dict[str, Any], str]:
    """The object that holds what a path names, and its name there."""
    way, _, name = path.rpartition(".")
    return value_at(row, way), name


def _removed(draw: Draw) -> Change:
    path = draw.rng.choice(_NEEDED[draw.source])
    row = copy.deepcopy(draw.values)
    holder, name = _holder(row, path)
    del holder[name]
    return Change(path, "the field is missing", row)


def _renamed(draw: Draw) -> Change:
    path = draw.rng.choice(_NEEDED[draw.source])
    row = copy.deepcopy(draw.values)
    holder, name = _holder(row, path)
    place = draw.rng.randrange(1, len(name) - 1)
    other = name[:place] + name[place + 1] + name[place] + name[place + 2 :]
    other = other if other != name else name + "_"
    items = [(other if key == name else key, value) for key, value in holder.items()]
    holder.clear()
    holder.update(items)
    return Change(path, f"the field is called {other}", row, also=(path[: len(path) - len(name)] + other,))


def _nulled(draw: Draw) -> Change:
    path = draw.rng.choice(_NEEDED[draw.source])
    return Change(path, "the field is null", with_value(draw.values, path, None))


_WITH_FIELDS = tuple(_NEEDED)
MISSING_FIELD = (Way(_removed, _WITH_FIELDS), Way(_renamed, _WITH_FIELDS), Way(_nulled, _WITH_FIELDS))


# ── a value of another type ─────────────────────────────────────────────────────────────────────────────────────────


def _turned(what: str, path: str, turn: Callable[[Any], Any]) -> Plant:
    def plant(draw: Draw) -> Change:
        return Change(path, what, with_value(draw.values, path, turn(value_at(draw.values, path))))

    return plant


def _last_number(text: str) -> int:
    return int("".join(sign for sign in text.rpartition("####")[2] if sign.isdigit()))


WRONG_TYPE = (
    Way(_turned("a number instead of text", "answer", _last_number), (GSM8K,)),
    Way(_turned("a list of one text instead of text", "output", lambda text: [text]), (ALPACA,)),
    Way(_turned("an object instead of text", "question", lambda text: {"text": text}), (GSM8K,)),
    Way(_turned("the turns as JSON in a text", "conversations", json.dumps), (DUMMY, GLAIVE, DPO)),
    Way(_turned("text instead of a list of texts", "target", lambda texts: texts[0]), (SCITLDR,)),
    Way(_turned("a truth value as text", "label", lambda truth: "yes" if truth else "no"), (KTO,)),
    Way(_turned("a number as text", "answers[0].answer_start", lambda start: f"{start}"), (XQUAD,)),
    Way(_turned("true instead of text", "answer", lambda text: text == "Yes"), (LEGAL,)),
    Way(_turned("text instead of a turn", "conversations[0]", lambda turn: turn["value"]), (DUMMY, GLAIVE)),
    Way(_turned("a list instead of text", "text", lambda text: text.split("\n")), (C4,)),
    Way(_turned("a number instead of text", "instruction", len), (ALPACA,)),
    Way(_turned("an answer as a bare text, unlike the others", "answers", lambda found: found[0]["text"]), (XQUAD,)),
)


# ── two columns exchanged ───────────────────────────────────────────────────────────────────────────────────────────


def _exchanged(one: str, other: str) -> Plant:
    def plant(draw: Draw) -> Change | None:
        row = dict(draw.values)
        row[one], row[other] = row[other], row[one]
        return Change(one, f"{one} and {other} are exchanged", row, also=(other,)) if row != draw.values else None

    return plant


SWAPPED_COLUMNS = (
    Way(_exchanged("category", "text"), (BANKING,)),
    Way(_exchanged("label", "text"), (AMAZON,)),
    Way(_exchanged("entailment_judgment", "relatedness_score"), (SICK,)),
    Way(_exchanged("intent", "utterance"), (BITEXT,)),
    Way(_exchanged("intent", "category"), (BITEXT,)),
    Way(_exchanged("sentence_B", "entailment_judgment"), (SICK,)),
)

WAYS = {
    "broken_row": BROKEN_ROW,
    "missing_field": MISSING_FIELD,
    "wrong_type": WRONG_TYPE,
    "swapped_columns": SWAPPED_COLUMNS,
}
