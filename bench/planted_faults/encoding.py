"""Text that was decoded with the wrong table, bytes that are not UTF-8, characters that no one sees."""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

from bench.planted_faults.faults import Change, Draw, Plant, Way, all_texts, edited, inserted
from bench.planted_faults.sources import (
    AMAZON,
    BANKING,
    BITEXT,
    C4,
    COT,
    GSM8K,
    LEGAL,
    PROSE,
    SCITLDR,
    SHORT,
    SICK,
    with_value,
)  # fmt: skip

_ACCENTED = ("café", "naïve", "Zürich", "Müller's", "São Paulo", "Beyoncé", "jalapeño", "façade", "Göteborg", "Renée")


def typographic(text: str) -> str | None:
    """The text as a word processor writes it; None where it has nothing to set."""
    new = re.sub(r"(?<=\w)'(?=\w)", "’", text)
    new = re.sub(r'"([^"\n]+)"', "“\\1”", new).replace("...", "…").replace(" - ", " – ")
    return new if new != text else None


def accented(text: str, rng: Random) -> str:
    """The text with a name or a loanword in it that is spelt with an accent."""
    return inserted(text, rng.choice(_ACCENTED), rng)


def misread(table: str, times: int = 1) -> Callable[[str], str | None]:
    """UTF-8 taken for another table, so many times; None where that table has no such byte."""

    def read(text: str) -> str | None:
        try:
            for _ in range(times):
                text = text.encode().decode(table)
        except UnicodeDecodeError:
            return None
        return text

    return read


def _set_then(damage: Callable[[str], str | None]) -> Callable[[str, Random], str | None]:
    def edit(text: str, rng: Random) -> str | None:
        new = typographic(text)
        return None if new is None else damage(new)

    return edit


def _accented_then(damage: Callable[[str], str | None]) -> Callable[[str, Random], str | None]:
    def edit(text: str, rng: Random) -> str | None:
        return damage(accented(text, rng))

    return edit


def _lost(text: str) -> str:
    return "".join("\ufffd" if ord(sign) > 127 else sign for sign in text)


_BOTH = (*PROSE, *SHORT)

MOJIBAKE = (
    Way(edited("UTF-8 quotes and dashes read as Windows-1252", _set_then(misread("cp1252"))), _BOTH),
    Way(edited("UTF-8 accents read as Latin-1", _accented_then(misread("latin-1"))), _BOTH),
    Way(edited("UTF-8 read as Windows-1252 twice", _accented_then(misread("cp1252", 2))), _BOTH),
    Way(edited("UTF-8 quotes read as Latin-1", _set_then(misread("latin-1"))), _BOTH),
    Way(edited("UTF-8 quotes read as Mac Roman", _set_then(misread("mac_roman"))), _BOTH),
    Way(edited("characters lost to U+FFFD", _set_then(_lost)), _BOTH),
    Way(edited("UTF-8 accents read as Windows-1252", _accented_then(misread("cp1252"))), _BOTH),
    Way(edited("accents lost to U+FFFD", _accented_then(_lost)), _BOTH),
)


def _raw(what: str, bad: bytes, instead_of: str = "") -> Plant:
    """Bytes in the middle of a text: before a letter, or instead of one."""
    mark = "\ue000"

    def plant(draw: Draw) -> Change | None:
        fitting = [(path, text) for path, text in all_texts(draw) if len(text) >= 20]
        if not fitting:
            return None
        path, text = draw.rng.choice(fitting)
        places = [match.start() for match in re.finditer(instead_of or r"(?<=\w)[a-z]", text)]
        if not places:
            return None
        place = draw.rng.choice(places)
        written = draw.written(with_value(draw.values, path, text[:place] + mark + text[place + len(instead_of) :]))
        return Change(path, what, data=written.replace(mark.encode(), bad))

    return plant


_LINES = (GSM8K, COT, LEGAL, SCITLDR, C4, BANKING, BITEXT, SICK, AMAZON)

INVALID_UTF8 = (
    Way(_raw("é as the one byte of Latin-1", b"\xe9", "e"), _LINES),
    Way(_raw("a quote as the one byte of Windows-1252", b"\x92", "'"), _LINES),
    Way(_raw("a character of three bytes that lost its last", b"\xe2\x80"), _LINES),
    Way(_raw("half of a surrogate pair, as CESU-8 writes it", b"\xed\xa0\xbd"), _LINES),
    Way(_raw("a byte that only goes on with a character, without its beginning", b"\xbf"), _LINES),
    Way(_raw("0xFF, which UTF-8 never uses", b"\xff"), _LINES),
)


def _inside_word(sign: str) -> Callable[[str, Random], str | None]:
    def edit(text: str, rng: Random) -> str | None:
        places = [match.start() for match in re.finditer(r"(?<=\w)\w", text)]
        if not places:
            return None
        place = rng.choice(places)
        return text[:place] + sign + text[place:]

    return edit


def _coloured(text: str, rng: Random) -> str:
    words = text.split(" ")
    place = rng.randrange(len(words))
    words[place] = f"\x1b[31m{words[place]}\x1b[0m"
    return " ".join(words)


CONTROL_CHARACTERS = tuple(
    Way(edited(what, edit), (GSM8K, SCITLDR, C4, COT, *SHORT))
    for what, edit in (
        ("a NUL", _inside_word("\x00")),
        ("a zero-width space within a word", _inside_word("\u200b")),
        ("colours of a terminal", _coloured),
        ("a backspace", _inside_word("\b")),
        ("a byte order mark in the middle", _inside_word("\ufeff")),
        ("a right-to-left override", _inside_word("\u202e")),
        ("a bell", _inside_word("\x07")),
        ("a next-line sign of the C1 controls", _inside_word("\x85")),
        ("a delete sign", _inside_word("\x7f")),
        ("a unit separator", _inside_word("\x1f")),
        ("a vertical tab", _inside_word("\x0b")),
        ("a private-use character", _inside_word("\uf0b7")),
    )
)

WAYS = {"mojibake": MOJIBAKE, "invalid_utf8": INVALID_UTF8, "control_characters": CONTROL_CHARACTERS}
