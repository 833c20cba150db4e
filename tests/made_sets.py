"""Small clean sets of several forms, made anew by a seed, in which tests of the data check plant faults."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nouns import NOUNS

from luthier.data.checks.checking import Checked, check_data

Rows = list[dict[str, Any]]
LINE = 57
"""The row that is planted in, counted from 1."""

THINGS = [*NOUNS, "planet"]
DEEDS = [
    "repair",
    "paint",
    "measure",
    "clean",
    "describe",
    "compare",
    "carry",
    "replace",
    "sketch",
    "polish",
    "examine",
    "guard",
    "label",
]
PLACES = [
    "Oslo",
    "Lisbon",
    "Cairo",
    "Quito",
    "Dakar",
    "Hanoi",
    "Perth",
    "Turin",
    "Izmir",
    "Cork",
    "Malmo",
    "Porto",
    "Gdansk",
    "Bergen",
    "Tampere",
]
WAYS = ["slowly", "carefully", "together", "outside", "tomorrow", "quietly", "twice", "indoors", "alone", "early"]


def sentence(random_: random.Random) -> str:
    """A sentence of a few hundred thousand."""
    thing, other = random_.sample(THINGS, 2)
    deed, place, way = random_.choice(DEEDS), random_.choice(PLACES), random_.choice(WAYS)
    return (
        f"We {deed} the {thing} and the {other} near {place}, and we do it {way} with {random_.randint(3, 98)} friends."
    )


def question(random_: random.Random) -> str:
    thing, place, way = random_.choice(THINGS), random_.choice(PLACES), random_.choice(WAYS)
    return f"How do you {random_.choice(DEEDS)} the {thing} of my {random_.choice(THINGS)} in {place} {way}?"


def answers(random_: random.Random) -> Rows:
    return [{"prompt": question(random_), "completion": f"{sentence(random_)} {sentence(random_)}"} for _ in range(200)]


def labelled(random_: random.Random) -> Rows:
    names = ("refund", "delivery", "complaint", "greeting")
    return [{"text": f"{question(random_)} {sentence(random_)}", "label": names[row % 4]} for row in range(240)]


def chats(random_: random.Random) -> Rows:
    def turn(role: str, content: str) -> dict[str, str]:
        return {"role": role, "content": content}

    return [
        {
            "messages": [
                turn("user", question(random_)),
                turn("assistant", sentence(random_)),
                turn("user", question(random_)),
                turn("assistant", sentence(random_)),
            ]
        }
        for _ in range(120)
    ]


def preferences(random_: random.Random) -> Rows:
    return [
        {"prompt": question(random_), "chosen": sentence(random_), "rejected": sentence(random_)} for _ in range(120)
    ]


def extracts(random_: random.Random) -> Rows:
    rows = []
    for _ in range(120):
        context = f"{sentence(random_)} {sentence(random_)}"
        start = context.index(" near ") + 6
        text = context[start : context.index(",")]
        answer = {"text": [text], "answer_start": [start]}
        rows.append({"context": context, "question": question(random_), "answers": answer})
    return rows


def spans(random_: random.Random) -> Rows:
    rows = []
    for _ in range(120):
        text = f"{sentence(random_)} {sentence(random_)}"
        place = next(place for place in PLACES if f"near {place}," in text)
        start = text.index(place)
        rows.append({"utterance": text, "value": place, "start_offset": start, "end_offset": start + len(place)})
    return rows


def calls(random_: random.Random) -> Rows:
    tool = {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
    return [
        {
            "conversations": [
                {"from": "human", "value": question(random_)},
                {
                    "from": "function_call",
                    "value": json.dumps({"name": "weather", "arguments": {"city": random_.choice(PLACES)}}),
                },
                {"from": "observation", "value": json.dumps({"degrees": random_.randint(-20, 40)})},
                {"from": "gpt", "value": sentence(random_)},
            ],
            "tools": json.dumps([tool]),
        }
        for _ in range(120)
    ]


def scored(random_: random.Random) -> Rows:
    return [
        {"sentence1": sentence(random_), "sentence2": sentence(random_), "score": random_.randint(10, 50) / 10}
        for _ in range(120)
    ]


def tagged(random_: random.Random) -> Rows:
    rows = []
    for _ in range(120):
        words = f"{sentence(random_)} {question(random_)}".split()
        rows.append({"tokens": words, "ner_tags": ["B-LOC" if word.strip(",") in PLACES else "O" for word in words]})
    return rows


SETS: dict[str, Callable[[random.Random], Rows]] = {
    made.__name__: made for made in (answers, labelled, chats, preferences, extracts, spans, calls, scored, tagged)
}


def rows_of(name: str) -> Rows:
    return SETS[name](random.Random(7))


def written(path: Path, rows: Rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def checked(folder: Path, rows: Rows, held_out: Rows | None = None) -> Checked:
    train = written(folder / "rows.jsonl", rows)
    other = None if held_out is None else written(folder / "held_out.jsonl", held_out)
    return check_data(train, other, lambda text: None)
