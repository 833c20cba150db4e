"""What is wrong with the clean files themselves, found by going through them without cleverness.

Rows listed here are never chosen for planting, and a finding at one of them is not counted as a false alarm.
"""

from __future__ import annotations

import html
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import combinations

from bench.planted_faults.forms import CleanFile, Values
from bench.planted_faults.sources import ALPACA, BITEXT, C4, DPO, GLAIVE, KTO, LEGAL, REASONING, WNUT, XQUAD, Source

Notes = dict[int, list[str]]
"""Index of a row → what is wrong with it."""

_LONG_WORDS = 25
_END_WORDS = 12
_AGAIN = 4
_FOREIGN_LETTERS = 12


BROKEN_OFF = {
    ALPACA: (125, 270, 464, 559, 731, 783, 899),
    DPO: (8, 31, 53, 66, 80, 85, 114, 138, 139, 175, 213, 224, 230, 245, 246, 276),
    KTO: (5, 22, 23, 59, 60, 66, 95, 112, 190, 219, 279),
    GLAIVE: (52,),
}
"""Rows with an answer that ends in the middle of a sentence; found by reading all that end without a stop."""


READ = {
    ALPACA: {
        81: "the answer says that it is a language model", 381: "the answer says that it is a language model",
        408: "the answer says that it is a language model", 433: "the answer says that it is a language model",
        712: "the answer says that it is a language model", 737: "the answer says that it is a language model",
        818: "the answer says that it is a language model", 943: "the answer says that it is a language model",
        180: "a block of code is opened and not closed", 762: "the answer begins with the heading of a prompt",
        961: "a no-break space between two sentences",
    },
    DPO: {
        25: "the letters \\n stand for a line break", 60: "a text ends with the word because",
        70: "the better answer refuses as a language model", 124: "a block of code is opened and not closed",
        202: "a user's turn in German", 288: "a text ends with the word the",
    },
    KTO: {
        13: "a line break before the text", 25: "the answer ends within a formula",
        38: "a mark of code that nothing closes", 137: "the answer says that it is a language model",
        238: "the letters \\n stand for a line break",
    },
    GLAIVE: {
        48: "braces of a code that do not close", 60: "asked as in row 165, answered otherwise",
        79: "braces of JSON that do not close", 244: "thousands of zeros",
    },
    REASONING: {
        6: "a mark of reasoning that nothing opens", 7: "a mark of reasoning that nothing opens",
        18: "an argument that the tool does not have", 19: "the address of a machine",
        41: "somebody's e-mail address",
    },
    LEGAL: {
        99: "the text ends with the word the", 126: "the text ends within a sentence", 132: "the text ends with the word the",
        313: "the text ends with the word or", 488: "the text ends with the word a", 491: "the text ends with the word a",
        131: "a no-break space between two words",
    },
    C4: {
        107: "but for a name the same page as row 91", 141: "a telephone number before a full stop",
        216: "a text in Finnish",
        222: "the number of a bank account", 282: "a no-break space between two sentences",
    },
    XQUAD: {17: "the same question is asked twice of one text", 22: "the same question is asked twice of one text",
            403: "the same question is asked twice of one text", 409: "the same question is asked twice of one text"},
}  # fmt: skip
"""Rows that are at fault in a way that is not looked for here; each was read, and what is wrong with it is said."""


def known_faults(source: Source, file: CleanFile) -> Notes:
    """Of one file: rows that stand twice, that contradict each other, and texts with something in them."""
    notes: Notes = defaultdict(list)
    rows = [record.values for record in file.records]
    if source is not XQUAD:  # where the same question is asked of different texts
        for index, note in _repeated(source, rows):
            notes[index].append(note)
    for index, note in _nearly_repeated(source, rows):
        notes[index].append(note)
    for index, values in enumerate(rows):
        notes[index] += [f"{path}: {note}" for path, text in source.texts(values) for note in _seen_in(text)]
        notes[index] += _lacking(source, values)
    for number in BROKEN_OFF.get(source, ()):
        if number <= len(file.records):
            notes[number - 1].append("an answer breaks off")
    for number, note in READ.get(source, {}).items():
        if number <= len(file.records):
            notes[number - 1].append(note)
    return {index: found for index, found in notes.items() if found}


def known_leaks(source: Source, train: CleanFile, validation: CleanFile) -> tuple[Notes, Notes]:
    """What a training file and its validation file have in common: notes on the one, and on the other."""
    places: dict[str, list[int]] = defaultdict(list)
    for index, record in enumerate(train.records):
        places[_asked(source, record.values)].append(index)
    of_train, of_validation = defaultdict(list), defaultdict(list)
    for index, record in enumerate(validation.records):
        for other in places.get(_asked(source, record.values), ()):
            of_train[other].append(f"stands in the validation file too, at {record.number}")
            of_validation[index].append(f"stands in the training file too, at {train.records[other].number}")
    return dict(of_train), dict(of_validation)


# ── rows compared ───────────────────────────────────────────────────────────────────────────────────────────────────


def words_of(text: str) -> list[str]:
    """Letters and digits in small letters; signs and spaces are lost."""
    return re.findall(r"\w+", text.casefold())


def _asked(source: Source, values: Values) -> str:
    """What the model reads of a row; of a conversation or a plain text, all of it."""
    if source is WNUT:
        return " ".join(values["tokens"]).casefold()
    texts = source.texts(values) if source.chat or not source.prompts else source.prompt_texts(values)
    read = [text for _, text in texts] + [json.dumps(values[name]) for name in source.context]
    return "\n".join(" ".join(words_of(text)) for text in read)


def _repeated(source: Source, rows: list[Values]) -> Iterator[tuple[int, str]]:
    places: dict[str, list[int]] = defaultdict(list)
    for index, values in enumerate(rows):
        places[_asked(source, values)].append(index)
    for asked, found in places.items():
        if len(found) == 1 or not asked.strip():
            continue
        labels = {str(rows[index].get(source.label)) for index in found} if source.label else {""}
        note = f"the same text stands in {len(found)} rows"
        note += ", and they are labelled differently" if len(labels) > 1 else ""
        yield from ((index, note) for index in found)


def _nearly_repeated(source: Source, rows: list[Values]) -> Iterator[tuple[int, str]]:
    """Rows of many words that are the same but for one of them: then their first words are the same, or their last."""
    long: dict[int, list[str]] = {}
    with_ends: dict[tuple[bool, tuple[str, ...]], list[int]] = defaultdict(list)
    for index, values in enumerate(rows):
        read = [text for _, text in source.texts(values)] + [json.dumps(values[name]) for name in source.context]
        words = words_of(" ".join(read))
        if len(words) >= _LONG_WORDS:
            long[index] = words
            with_ends[True, tuple(words[:_END_WORDS])].append(index)
            with_ends[False, tuple(words[-_END_WORDS:])].append(index)
    pairs = {pair for indexes in with_ends.values() for pair in combinations(indexes, 2)}
    near = {index for one, other in pairs if differ_in_a_word(long[one], long[other]) for index in (one, other)}
    yield from ((index, "but for a word, another row is the same") for index in sorted(near))


def differ_in_a_word(one: list[str], other: list[str]) -> bool:
    """Whether one word at most was changed, put in or left out."""
    if abs(len(one) - len(other)) > 1:
        return False
    shorter = min(len(one), len(other))
    start = next((place for place in range(shorter) if one[place] != other[place]), shorter)
    rest, other_rest = one[start:], other[start:]
    return rest[1:] == other_rest[1:] or rest[1:] == other_rest or rest == other_rest[1:]


# ── texts looked at ─────────────────────────────────────────────────────────────────────────────────────────────────


_HIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u2028-\u202e\ue000-\uf8ff\ufeff]")
_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]{2,}")
_TAG = re.compile(r"</?[a-zA-Z][^<>\n]{0,80}>")
_MAIL = re.compile(r"[\w.+-]+@\w[\w-]*\.\w{2,}")
_TELEPHONE = re.compile(
    r"(?<![\w.])(?:\(\d{3}\) ?|\d{3}[-. ])\d{3}[-. ]\d{4}(?![\w.])|(?<!\w)\+\d{1,3}[- (]\d[\d() -]{6,14}\d"
)
_INTERNET = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b")
_SLOT = re.compile(r"\[(?:your|insert|name|date|company)\b[^\]]*\]|\{\{|\}\}|<\|", re.IGNORECASE)
_ACCENTED = re.compile("[\u00df-\u00f6\u00f8-\u024f]")
_OTHER_SCRIPT = re.compile("[\u0370-\u1fff\u3040-\ud7af]")


def _seen_in(text: str) -> Iterator[str]:
    if "\ufffd" in text:
        yield "a lost character"
    if _HIDDEN.search(text):
        yield "a character that cannot be seen"
    if not text.isascii() and any(_is_misread(run) for run in _BEYOND_ASCII.findall(text)):
        yield "UTF-8 read with another table"
    if ("&" in text and html.unescape(text) != text) or _TAG.search(text):
        yield "HTML, or what looks like it"
    if "@" in text and _MAIL.search(text):
        yield "an e-mail address"
    if _TELEPHONE.search(text):
        yield "a telephone number"
    if _INTERNET.search(text):
        yield "an internet address"
    if _SLOT.search(text):
        yield "a slot that no one filled"
    if _goes_round(text):
        yield "the same over and over"
    if not text.isascii() and len(_OTHER_SCRIPT.findall(text)) >= _FOREIGN_LETTERS:
        yield "another script"
    if not text.isascii() and len(_ACCENTED.findall(text)) >= _FOREIGN_LETTERS:
        yield "as many accents as another language has"


def _is_misread(run: str) -> bool:
    """Whether the characters are the bytes of UTF-8, seen through a table of single bytes."""
    for table in ("cp1252", "latin-1"):
        try:
            run.encode(table).decode()
        except UnicodeError:
            continue
        return True
    return False


def _goes_round(text: str) -> bool:
    """Whether a sentence of four words or more stands in it four times."""
    sentences = Counter(part.strip() for part in re.split(r"[.!?\n]+", text))
    return any(times >= _AGAIN and len(sentence.split()) >= 4 for sentence, times in sentences.items())


def _lacking(source: Source, values: Values) -> Iterable[str]:
    for path, text in [*source.prompt_texts(values)[:1], *source.answer_texts(values)]:
        if not text.strip():
            yield f"{path}: empty"
    if source is BITEXT and values["entity_type"]:
        marked = values["utterance"][int(values["start_offset"]) : int(values["end_offset"])]
        if marked != values["entity_value"]:
            yield f"entity_value: the text has {marked!r} there"
