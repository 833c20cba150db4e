"""What a fault is made of: the row that was drawn for it, the change that is made there, and the ways it comes about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from bench.planted_faults.forms import CleanFile, Values
from bench.planted_faults.sources import Source, with_value


@dataclass(frozen=True)
class Draw:
    """A row drawn at random, and what a way may look at. `free` holds the indexes of rows that nothing was done to; `foreign`
    are texts in another language."""

    rng: Random
    source: Source
    file: CleanFile
    index: int
    free: Sequence[int]
    foreign: Sequence[str] = ()

    @property
    def values(self) -> Values:
        """The row as it is."""
        return self.file.records[self.index].values

    def written(self, values: Values) -> bytes:
        """The row as bytes of its file, with other values."""
        return self.file.form.write(values, self.file.records[self.index].data)


@dataclass(frozen=True)
class Change:
    """What becomes of a row: other values, or other bytes where values cannot say it.

    field: the path of what is wrong; empty where it is the row as a whole.
    also: other fields that may be named as well.
    partner: the index of the row that it is a copy of, or contradicts.
    """

    field: str
    what: str
    values: Values | None = None
    data: bytes | None = None
    also: tuple[str, ...] = ()
    partner: int | None = None


Plant = Callable[[Draw], Change | None]
"""Makes the change, or None where the row does not lend itself to it."""


@dataclass(frozen=True)
class Way:
    """One way in which a kind of fault comes about, and the files where it does.

    into_validation: the row that is changed lies in the validation file, and its partner in the training file.
    """

    plant: Plant
    sources: tuple[Source, ...]
    into_validation: bool = False


Texts = Callable[[Draw], list[tuple[str, str]]]


def all_texts(draw: Draw) -> list[tuple[str, str]]:
    """Path and text of all prose of the row."""
    return draw.source.texts(draw.values)


def answer_texts(draw: Draw) -> list[tuple[str, str]]:
    """Path and text of what the model is to write; of preferences, the better one."""
    return [(path, text) for path, text in draw.source.answer_texts(draw.values) if not path.startswith("rejected")]


def edited(what: str, edit: Callable[[str, Random], str | None], texts: Texts = all_texts, least: int = 15) -> Plant:
    """A way that edits one text of at least so many characters; None from `edit`: this text does not lend itself to it."""

    def plant(draw: Draw) -> Change | None:
        fitting = [(path, text) for path, text in texts(draw) if len(text) >= least]
        if not fitting:
            return None
        path, text = draw.rng.choice(fitting)
        new = edit(text, draw.rng)
        if new is None or new == text:
            return None
        return Change(path, what, with_value(draw.values, path, new))

    return plant


def inserted(text: str, piece: str, rng: Random) -> str:
    """The text with a piece between two of its words."""
    words = text.split(" ")
    place = rng.randint(1, len(words))
    return " ".join([*words[:place], piece, *words[place:]])
