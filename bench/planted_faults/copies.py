"""Rows that stand twice, in one file or in two, and rows that say the same and are labelled otherwise."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from random import Random

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
    with_value,
)  # fmt: skip

# ── light edits ─────────────────────────────────────────────────────────────────────────────────────────────────────

_SAME_MEANING = {
    "the": "a", "a": "the", "is": "was", "are": "were", "can": "could", "will": "would", "big": "large", "many": "several",
    "also": "too", "and": "or", "in": "within", "very": "quite", "this": "that", "has": "had", "have": "had", "we": "they",
}  # fmt: skip


def _word_changed(text: str, rng: Random) -> str | None:
    words = text.split(" ")
    places = [place for place, word in enumerate(words) if word in _SAME_MEANING]
    if not places:
        return None
    place = rng.choice(places)
    words[place] = _SAME_MEANING[words[place]]
    return " ".join(words)


def _two_words_changed(text: str, rng: Random) -> str | None:
    once = _word_changed(text, rng)
    return None if once is None else _word_changed(once, rng)


def _word_dropped(text: str, rng: Random) -> str | None:
    words = text.split(" ")
    del words[rng.randrange(len(words))]
    return " ".join(words)


def _letters_exchanged(text: str, rng: Random) -> str | None:
    places = [match.start() + 1 for match in re.finditer(r"\b[a-z]{5,}", text)]
    if not places:
        return None
    place = rng.choice(places)
    return text[:place] + text[place + 1] + text[place] + text[place + 2 :]


def _spaced_anew(text: str, rng: Random) -> str | None:
    new = re.sub(r"([.?!]) ", r"\1  ", text)
    return new if new != text else f"{text} "


def _cased_anew(text: str, rng: Random) -> str | None:
    new = text.lower() if rng.random() < 0.5 else text.upper()
    return new if new != text else text.capitalize()


def _ended_anew(text: str, rng: Random) -> str | None:
    return text.rstrip(".?! ") if text.rstrip()[-1:] in ".?!" else f"{text}!"


Edit = Callable[[str, Random], str | None]

# ── copies in one file ──────────────────────────────────────────────────────────────────────────────────────────────


def _other(draw: Draw, fits: Callable[[Values], bool] = lambda values: True) -> int | None:
    """A row that nothing was done to, other than the one that was drawn."""
    for _ in range(200):
        index = draw.rng.choice(draw.free)
        if index != draw.index and fits(draw.file.records[index].values):
            return index
    return None


def _copied(draw: Draw, index: int) -> Values:
    """That row, numbered as the drawn one is."""
    row = copy.deepcopy(draw.file.records[index].values)
    return row | {key: draw.values[key] for key in draw.source.keys if key in draw.values}


def _length(draw: Draw, values: Values) -> int:
    return sum(len(text.split()) for _, text in draw.source.texts(values))


def _exact(draw: Draw) -> Change | None:
    index = _other(draw)
    return None if index is None else Change("", "a copy", _copied(draw, index), partner=index)


def _same_sentence(draw: Draw) -> Change | None:
    tokens = len(draw.values["tokens"])
    index = _other(draw, lambda values: len(values["tokens"]) == tokens) if tokens >= 8 else None
    return (
        None if index is None else Change("", "a copy", copy.deepcopy(draw.file.records[index].values), partner=index)
    )


def _near(what: str, edit: Edit, least_words: int = 50) -> Plant:
    """A copy of a row, edited at one place of its longest text."""

    def plant(draw: Draw) -> Change | None:
        index = _other(draw, lambda values: _length(draw, values) >= least_words)
        if index is None:
            return None
        row = _copied(draw, index)
        path, text = max(draw.source.texts(row), key=lambda pair: len(pair[1]))
        new = edit(text, draw.rng)
        if new is None or new == text:
            return None
        return Change("", f"a copy with {what}", with_value(row, path, new), partner=index)

    return plant


_ALL = (BANKING, BITEXT, SICK, AMAZON, GSM8K, SCITLDR, COT, LEGAL, C4, ALPACA, DPO, KTO, GLAIVE, DUMMY)
_LONG = (GSM8K, SCITLDR, LEGAL, C4, ALPACA, DPO, KTO, GLAIVE)

EXACT_DUPLICATE = (Way(_exact, _ALL), Way(_exact, _ALL), Way(_exact, _ALL), Way(_same_sentence, (WNUT,)))
NEAR_DUPLICATE = (
    Way(_near("a word changed", _word_changed), _LONG),
    Way(_near("two words changed", _two_words_changed, 70), _LONG),
    Way(_near("a word dropped", _word_dropped), _LONG),
    Way(_near("two letters exchanged", _letters_exchanged), _LONG),
    Way(_near("other spaces", _spaced_anew), _LONG),
    Way(_near("other capitals", _cased_anew), (GSM8K, SCITLDR, C4)),
)


# ── copies in the validation file ───────────────────────────────────────────────────────────────────────────────────


def _leaked(draw: Draw) -> Change | None:
    """`draw` is of the training file; the row that it names is copied over one of the validation file."""
    return Change("", "a training row", copy.deepcopy(draw.values), partner=draw.index)


def _leaked_with(what: str, edit: Edit, least_words: int = 1) -> Plant:
    def plant(draw: Draw) -> Change | None:
        path, text = max(draw.source.prompt_texts(draw.values), key=lambda pair: len(pair[1]))
        new = edit(text, draw.rng)
        if new is None or new == text or _length(draw, draw.values) < least_words:
            return None
        row = with_value(draw.values, path, new)
        return Change("", f"a training row with {what}", row, partner=draw.index)

    return plant


_SPLIT = (BANKING, BITEXT, SICK, GSM8K, SCITLDR)

LEAKAGE = (
    Way(_leaked, _SPLIT, into_validation=True),
    Way(_leaked_with("a word changed", _word_changed, 50), (GSM8K, SCITLDR), into_validation=True),
    Way(_leaked, (WNUT, *_SPLIT), into_validation=True),
    Way(_leaked_with("other capitals", _cased_anew), _SPLIT, into_validation=True),
    Way(_leaked, _SPLIT, into_validation=True),
    Way(_leaked_with("another ending", _ended_anew), _SPLIT, into_validation=True),
)


# ── the same text, labelled otherwise ───────────────────────────────────────────────────────────────────────────────


def _relabelled(edit: Edit | None = None) -> Plant:
    """The text of another row, with the label that the drawn row has of its own, or the opposite of a yes."""

    def plant(draw: Draw) -> Change | None:
        label = draw.source.label
        assert label is not None
        index = _other(draw, lambda values: values[label] != draw.values[label])
        if index is None:
            return None
        row = _copied(draw, index) | {label: draw.values[label]}
        what = f"labelled {draw.values[label]}, its copy {draw.file.records[index].values[label]}"
        if edit is not None:
            for path, text in draw.source.prompt_texts(row):
                row = with_value(row, path, edit(text, draw.rng))
            what += "; written a little differently"
        return Change(label, what, row, partner=index)

    return plant


_OPPOSITE = {
    "Yes": "No",
    "No": "Yes",
    "yes": "no",
    "no": "yes",
    "True": "False",
    "False": "True",
    True: False,
    False: True,
}


def _denied(draw: Draw) -> Change | None:
    label = draw.source.label
    assert label is not None
    index = _other(draw, lambda values: values[label] in _OPPOSITE)
    if index is None:
        return None
    was = draw.file.records[index].values[label]
    row = _copied(draw, index) | {label: _OPPOSITE[was]}
    return Change(label, f"labelled {_OPPOSITE[was]}, its copy {was}", row, partner=index)


def _preferred_otherwise(draw: Draw) -> Change | None:
    index = _other(draw)
    if index is None:
        return None
    row = _copied(draw, index)
    row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    return Change(
        "chosen", "chosen and rejected the other way round than in its copy", row, also=("rejected",), partner=index
    )


_CLASSES = (BANKING, BITEXT, SICK, AMAZON)

CONTRADICTORY_LABEL = (
    Way(_relabelled(), _CLASSES),
    Way(_denied, (KTO, LEGAL, COT)),
    Way(_relabelled(_cased_anew), _CLASSES),
    Way(_relabelled(), _CLASSES),
    Way(_preferred_otherwise, (DPO,)),
    Way(_relabelled(_ended_anew), _CLASSES),
)

WAYS = {
    "exact_duplicate": EXACT_DUPLICATE,
    "near_duplicate": NEAR_DUPLICATE,
    "leakage": LEAKAGE,
    "contradictory_label": CONTRADICTORY_LABEL,
}
