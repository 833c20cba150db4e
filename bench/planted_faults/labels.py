"""Labels that are not quite one of the set, values out of their range, marks that do not lie where they say."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from random import Random
from typing import Any

from bench.planted_faults.faults import Change, Draw, Plant, Way
from bench.planted_faults.sources import AMAZON, BANKING, BITEXT, COT, LEGAL, SCITLDR, SICK, WNUT, XQUAD, with_value

# ── labels that are almost one of the set ───────────────────────────────────────────────────────────────────────────


def _misspelt(what: str, spell: Callable[[str, Random], str | None]) -> Plant:
    def plant(draw: Draw) -> Change | None:
        label = draw.source.label
        assert label is not None
        was = draw.values[label]
        new = spell(was, draw.rng)
        if new is None or new == was:
            return None
        return Change(label, f"{what}: {new!r} for {was!r}", with_value(draw.values, label, new))

    return plant


def _letters_exchanged(text: str, rng: Random) -> str | None:
    if len(text) < 5:
        return None
    place = rng.randrange(1, len(text) - 2)
    return text[:place] + text[place + 1] + text[place] + text[place + 2 :]


def _letter_lost(text: str, rng: Random) -> str | None:
    if len(text) < 5:
        return None
    place = rng.randrange(1, len(text) - 1)
    return text[:place] + text[place + 1 :]


def _yes_or_no(change: Callable[[str], str]) -> Callable[[str, Random], str | None]:
    return lambda text, rng: change(text) if text.lower() in ("yes", "no") else None


def _strange_number(text: str, rng: Random) -> str:
    return rng.choice(("2", "-1", "01", "positive", "1.0"))


def _unknown_tag(draw: Draw) -> Change | None:
    places = [place for place, tag in enumerate(draw.values["tags"]) if tag.startswith("B-")]
    if not places:
        return None
    place = draw.rng.choice(places)
    tag = draw.values["tags"][place]
    new = draw.rng.choice((tag.lower(), tag.replace("-", "_"), tag[:-2] + tag[-1], "B-PER"))
    return Change("tags", f"{new!r} for {tag!r}", with_value(draw.values, f"tags[{place}]", new))


_CLASSES = (BANKING, BITEXT, SICK)

LABEL_TYPO = (
    Way(_misspelt("letters exchanged", _letters_exchanged), _CLASSES),
    Way(_misspelt("other capitals", lambda text, rng: text.swapcase()), _CLASSES),
    Way(_misspelt("a letter lost", _letter_lost), _CLASSES),
    Way(_misspelt("a space after it", lambda text, rng: f"{text} "), (BANKING, BITEXT)),
    Way(_misspelt("another number", _strange_number), (AMAZON,)),
    Way(_misspelt("other capitals and a stop", _yes_or_no(lambda text: f"{text.lower()}.")), (LEGAL,)),
    Way(_misspelt("a space for an underscore", lambda text, rng: text.replace("_", " ")), (BANKING, BITEXT)),
    Way(_misspelt("a letter twice", _yes_or_no(lambda text: text + text[-1])), (LEGAL, COT)),
    Way(_unknown_tag, (WNUT,)),
    Way(_misspelt("letters exchanged", _letters_exchanged), _CLASSES),
    Way(_misspelt("capitals at the beginning", lambda text, rng: text.capitalize()), _CLASSES),
    Way(_misspelt("an ending too many", lambda text, rng: f"{text}s"), _CLASSES),
)


# ── values out of their range ───────────────────────────────────────────────────────────────────────────────────────


def _valued(path: str, values: tuple[Any, ...]) -> Plant:
    def plant(draw: Draw) -> Change:
        new = draw.rng.choice(values)
        return Change(path, f"{path} is {new}", with_value(draw.values, path, new))

    return plant


def _one_of_many(field: str, values: tuple[float, ...]) -> Plant:
    def plant(draw: Draw) -> Change:
        place = draw.rng.randrange(len(draw.values[field]))
        new = draw.rng.choice(values)
        return Change(field, f"{field}[{place}] is {new}", with_value(draw.values, f"{field}[{place}]", new))

    return plant


def _no_such_option(draw: Draw) -> Change | None:
    """A letter, or a phrase, that is not among the options that the input lists."""
    text, answer = draw.values["input"], draw.values["answer"]
    if "Options" not in text:
        return None
    if re.fullmatch(r"\([A-H]\)", answer):
        new = draw.rng.choice([f"({letter})" for letter in "FGHIJK" if f"({letter})" not in text])
    elif draw.values["task"] == "ecqa":
        new = draw.rng.choice(("umbrella stand", "purple walrus", "tax form"))
    else:
        return None
    return Change("answer", f"{new!r} is none of the options", with_value(draw.values, "answer", new))


OUT_OF_RANGE = (
    Way(_valued("relatedness_score", ("45", "47", "36", "28")), (SICK,)),
    Way(_no_such_option, (COT,)),
    Way(_one_of_many("rouge_scores", (1.7, 23.5, 41.0)), (SCITLDR,)),
    Way(_valued("relatedness_score", ("-1", "-3.5", "-4.2")), (SICK,)),
    Way(_one_of_many("source_labels", (7, -1, 12)), (SCITLDR,)),
    Way(_no_such_option, (COT,)),
    Way(_valued("relatedness_score", ("4,5", "3,2", "nan", "inf")), (SICK,)),
    Way(_one_of_many("rouge_scores", (-0.4, -1.0)), (SCITLDR,)),
    Way(_valued("relatedness_score", ("0", "5.8", "6", "10")), (SICK,)),
)


# ── marks that lie elsewhere ────────────────────────────────────────────────────────────────────────────────────────


def _moved_start(draw: Draw) -> Change | None:
    """The answer does not stand where it is said to begin."""
    answer = draw.values["answers"][0]
    step = draw.rng.choice((1, -1, 3, -5, 20, 137, 9000))
    start = answer["answer_start"] + step
    path = "answers[0].answer_start"
    # a text that repeats itself, such as "aa", could still fit one step further
    if start < 0 or len(set(answer["text"])) < 2:
        return None
    return Change(path, f"off by {step}", with_value(draw.values, path, start), also=("answers[0].text",))


def _other_answer(draw: Draw) -> Change | None:
    path = "answers[0].text"
    text = draw.values["answers"][0]["text"]
    new = draw.rng.choice((text.swapcase(), f"{text[1:]}{text[:1]}", f"the so-called {text}"))
    if new == text:
        return None
    return Change(
        path, "not what stands in the context", with_value(draw.values, path, new), also=("answers[0].answer_start",)
    )


def _moved_offset(draw: Draw) -> Change | None:
    if not draw.values["entity_type"]:
        return None
    start = int(draw.values["start_offset"])
    step = draw.rng.choice((2, 4, 250, -3))
    if start + step < 0:
        return None
    row = dict(draw.values) | {"start_offset": str(start + step)}
    return Change("start_offset", f"off by {step}", row, also=("end_offset", "entity_value"))


def _other_entity(draw: Draw) -> Change | None:
    value = draw.values["entity_value"]
    if len(value) < 4:
        return None
    new = value[:-1] + draw.rng.choice([sign for sign in "0123456789" if sign != value[-1]])
    row = dict(draw.values) | {"entity_value": new}
    return Change("entity_value", "not what stands in the text", row, also=("start_offset", "end_offset", "utterance"))


def _inside_alone(draw: Draw) -> Change | None:
    """An entity that begins as if it went on."""
    tags = draw.values["tags"]
    places = [
        place for place, tag in enumerate(tags) if tag.startswith("B-") and (place == 0 or tags[place - 1] == "O")
    ]
    if not places:
        return None
    place = draw.rng.choice(places)
    new = "I-" + tags[place][2:]
    return Change(
        "tags", f"{new} at token {place + 1} without its beginning", with_value(draw.values, f"tags[{place}]", new)
    )


def _turncoat(draw: Draw) -> Change | None:
    """An entity that goes on as another type."""
    places = [place for place, tag in enumerate(draw.values["tags"]) if tag.startswith("I-")]
    if not places:
        return None
    place = draw.rng.choice(places)
    other = draw.rng.choice(
        [name for name in ("person", "location", "group") if name != draw.values["tags"][place][2:]]
    )
    row = with_value(draw.values, f"tags[{place}]", f"I-{other}")
    return Change("tags", f"token {place + 1} goes on with another type", row)


def _one_label_less(draw: Draw) -> Change:
    row = copy.deepcopy(draw.values)
    del row["source_labels"][-1]
    return Change("source_labels", "a label less than sentences", row, also=("source",))


SPAN_MISMATCH = (
    Way(_moved_start, (XQUAD,)),
    Way(_inside_alone, (WNUT,)),
    Way(_moved_offset, (BITEXT,)),
    Way(_other_answer, (XQUAD,)),
    Way(_turncoat, (WNUT,)),
    Way(_one_label_less, (SCITLDR,)),
    Way(_moved_start, (XQUAD,)),
    Way(_inside_alone, (WNUT,)),
    Way(_other_entity, (BITEXT,)),
)

WAYS = {"label_typo": LABEL_TYPO, "out_of_range": OUT_OF_RANGE, "span_mismatch": SPAN_MISMATCH}
