"""Answers that are none: empty, cut off, the question again, a refusal, the same words over and over.

Whether a text is cut off is told by what it ends with (a comma, "the", an open bracket or fence), and by its peers: where
nearly all end with a full stop, or with a line such as `#### 42`, the few that do not were cut.
"""

from __future__ import annotations

import bisect
import itertools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import eq

from luthier.data.checks.findings import Finding, Notes, Severity, excerpt
from luthier.data.checks.view import Cell, Layout, RowView, halves_of, named, normal

KINDS: Mapping[str, Severity] = {
    "empty-answer": "error",
    "cut-text": "error",
    "unclosed-fence": "error",
    "unclosed-bracket": "error",
    "answer-is-prompt": "error",
    "refusal": "error",
    "repetition": "error",
}

_FEWEST = 20
_LONGEST_EXTRACT = 400
_ENDS = ".!?。！？…\"”’'»›)]}）】」』*_`~>||।؟。♪;:"
_OPEN_ENDS = ",;(-–—&，、；（[{+=<"
_LITTLE_WORDS = named(
    "a an the and or but of to in on at for with by from as that which who whose is are was were be been has have had will "
    "would can could should may might must his her its our your my this these those than if when while because into onto "
    "between such during without within der das und oder ein eine einer mit für ist les de des du et un une est el los las "
    "con por para il lo gli di per"
)
_STRANGE_LAST = named(
    "in on at to for with by from of as about over after before within through so is are was were be have has had can could should may might will would not his her its this these those than then that"
)
_REFUSALS = (
    re.compile(
        r"(?i)\bas an? (?:large )?(?:ai )?(?:language|chat) ?(?:model|bot)\b|\bas an ai (?:language )?(?:model|assistant|chatbot)?\b,? (?:trained|developed|created) by"
        r"|\bi(?:['’]m| am) (?:just |only )?an? (?:large )?(?:ai )?language model\b|\bas an artificial intelligence\b"
        r"|\bmy (?:knowledge|training)(?: data)? (?:cut-?off|only goes)|作为一个?(?:人工智能|AI|语言模型)"
    ),
    re.compile(
        r"(?i)^\W*(?:i(?:['’]m| am) (?:very |so |really )?sorry|sorry|i apologi[sz]e|unfortunately)[,.!]?(?: but)?,? (?:but )?(?:i|as an ai|that).{0,30}"
        r"\b(?:can['’]?t|cannot|can not|unable|not able|won['’]t|not comfortable)\b"
        r"|^\W*i(?:['’]?m| am)? ?(?:can['’]?t|cannot|can not|unable to|not able to|won['’]t)(?: be able to)? (?:help|assist|fulfil|comply|provide|answer|do that|engage|create|generate|complete|support)"
        r"|\bas an ai(?: assistant| model)?,? (?:i|it)\b|^\W*抱歉，?我(?:不能|无法)"
    ),
)
_REFUSING = re.compile(
    r"\bai\b|language model|can['’]t|cannot|unable|not able|won['’]t|cut|not comfortable|无法|不能|模型"
)
_REPEATED_LETTERS = re.compile(r"([^\s\d\W_]{2,12}?)\1{5,}|([^\W\d_])\2{15,}|([!?,;'\"。！？、，])\3{19,}")
_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+(?:['’]\w+)?")
_MOST_SENTENCES = 60
_SENTENCE = re.compile(r"[^.!?。！？\n]+[.!?。！？\n]*")


@dataclass(frozen=True)
class Words:
    """The words of the first rows, and the same in order."""

    all: frozenset[str]
    sorted: tuple[str, ...]


@dataclass(frozen=True)
class Ends:
    """How texts end, by peer: the mark that their last line begins with; who ends with a full stop; the words known."""

    marks: Mapping[str, str]
    stopped: frozenset[str]
    words: Words


def learn(views: Sequence[RowView]) -> Ends:
    """How the texts of the first rows end."""
    marks: dict[str, Counter[str]] = defaultdict(Counter)
    stops: dict[str, Counter[bool]] = defaultdict(Counter)
    words: Counter[str] = Counter()
    for view in views:
        for cell in view.cells:
            text = cell.text.rstrip()
            if not text:
                continue
            marks[cell.peer][_mark(text)] += 1
            stops[cell.peer][text[-1] in _ENDS] += 1
            words.update(set(_WORDS.findall(text.casefold()[:4000])[:-1]))
    usual = {peer: found.most_common(1)[0] for peer, found in marks.items() if found.total() >= _FEWEST}
    return Ends(
        {peer: mark for peer, (mark, count) in usual.items() if mark and count >= 0.95 * marks[peer].total()},
        frozenset(
            peer for peer, found in stops.items() if found.total() >= _FEWEST and found[True] >= 0.96 * found.total()
        ),
        Words(frozenset(words), tuple(sorted(words))),
    )


def _mark(text: str) -> str:
    """The signs or the word with a colon that the last line begins with; nothing where there is one line alone."""
    _, newline, last = text.rpartition("\n")
    match = re.match(r"\W{2,}(?=\s|\w)|\w+:", last)
    return match[0].strip() if newline and match else ""


def look(view: RowView, layout: Layout, ends: Ends, notes: Notes) -> None:
    """Note what is wrong with a row's answers, and texts of any part that are cut."""
    for cell in view.cells:
        if cell.part in ("id", "label", "tool") or cell.peer in layout.closed:
            continue
        if cell.text.strip() and not layout.is_prose and not _is_extract(view, cell):
            _cut(view, cell, ends, notes)
            _unclosed(view, cell, notes)
        if cell.part in ("answer", "text"):
            _repeated(view, cell, notes)
        if cell.part == "answer":
            _answer(view, cell, notes)
    _echo(view, layout, notes)


def _is_extract(view: RowView, cell: Cell) -> bool:
    """Whether a short text stands in a longer one of its row: an answer quoted from its context ends where the quote does."""
    text = cell.text
    return len(text) <= _LONGEST_EXTRACT and any(
        len(each.text) > 2 * len(text) and each.part != cell.part and text in each.text for each in view.cells
    )


def _answer(view: RowView, cell: Cell, notes: Notes) -> None:
    if is_meant_bad(view, cell):
        return
    text = cell.text
    if text.strip() and not any(unicodedata.category(sign)[0] in "LNS" for sign in text):
        found = f"the answer is {text.strip()[:20]!r}, without a letter, a digit or a symbol."
        _suspect(view, cell, notes, "empty-answer", found, "Fill it in, or leave this row out.", 0.01)
    folded = text.casefold()
    if not _REFUSING.search(folded):
        return
    for level, pattern in enumerate(_REFUSALS):
        if match := pattern.search(text if level == 0 else text[:300]):
            found = f"the answer refuses or speaks of being a model: {excerpt(text, match.start(), match.end())}."
            mend = "Leave this row out, unless the model is to learn to refuse here."
            _suspect(view, cell, notes, "refusal", found, mend, 0.03 if level == 0 else 0.01, level)
            return


def is_meant_bad(view: RowView, cell: Cell) -> bool:
    """Whether an answer is there to be avoided: the rejected one of two, or one that is marked as not wanted."""
    if cell.field.startswith(_WORSE):
        return True
    return any(view.values.get(mark) is False for mark in _WANTED) and (
        "messages" in view.values or "completion" in view.values
    )


_GIVEN = ("input", "context", "passage", "document")
_WORSE = ("rejected", "non_preferred")
_WANTED = ("label", "kto_tag")


def _echo(view: RowView, layout: Layout, notes: Notes) -> None:
    halves = halves_of(view, layout)
    if halves.answer_field is None or halves.is_closed:
        return
    notes.looked("answer-is-prompt", "")
    asked = [cell for cell in view.texts("prompt", "text") if not cell.peer.endswith("[]") and cell.text.strip()]
    # with an instruction beside it, an input comes back unchanged where nothing in it was to be changed
    prompts = [cell.text for cell in asked if len(asked) == 1 or cell.field not in _GIVEN]
    # what is much longer or shorter is another text, which saves making each normal
    like = [text for text in (*prompts, halves.given) if len(halves.answer) <= 2 * len(text) <= 4 * len(halves.answer)]
    answer = normal(halves.answer) if like else ""
    if len(answer) < 4 or answer not in map(normal, like):
        return
    found = f"the answer is the prompt again: {excerpt(halves.answer, 0, 40)}."
    finding = _finding(view, "answer-is-prompt", halves.answer_field, found, "Write the answer, or leave this row out.")
    notes.suspect("", finding, 0.02)


# ── texts that are cut ──────────────────────────────────────────────────────────────────────────────────────────────


def _cut(view: RowView, cell: Cell, ends: Ends, notes: Notes) -> None:
    text = cell.text.rstrip()
    mark = ends.marks.get(cell.peer)
    mend = "Give the whole text, or leave this row out."
    if mark and _mark(text) != mark:
        found = f"the text ends without a line {mark!r}, which nearly all others end with: {_end(text)}."
        _suspect(view, cell, notes, "cut-text", found, mend, 0.03)
        return
    level = _how_cut(text, cell.peer in ends.stopped, ends.words)
    if level is None or (" " not in text[-80:] and text.isascii()) or _CODE.search(text):
        return
    if cell.part == "prompt" and level not in (None, 0) and words_end_known(text, ends.words):
        return
    if level is not None:
        found = f"the text ends in the middle: {_end(text)}."
        limit = _CUT_LIMITS[level] / (2 if level and cell.part != "answer" else 1)
        _suspect(view, cell, notes, "cut-text", found, mend, limit, level)


_SIGNED = re.compile(r"[-–—~] ?[A-Z][\w.]*(?: [A-Z][\w.]*){0,4}$|#\w+$")
"""Texts end with the name of who said it, and with a hashtag."""

_CUT_LIMITS = (0.03, 0.012, 0.006, 0.006)
_CODE = re.compile(
    r"(?m)^\s*(?:def|class|import|from|return|public|private|function|const|let|var|#include|SELECT)\b|;\s*$|[{}]\s*$|\)\s*:$"
)


def words_end_known(text: str, known: Words) -> bool:
    """Whether the last word is one that the set uses elsewhere: not the half of one."""
    words = _WORDS.findall(text[-80:])
    return not words or words[-1].casefold() in known.all or not words[-1].isalpha()


def begins_a_word(piece: str, known: Words) -> bool:
    """Whether the set does not know a word, but one that begins with it: then it is the half of one."""
    if len(piece) < 2 or piece in known.all:
        return False
    at = bisect.bisect_left(known.sorted, piece)
    return at < len(known.sorted) and known.sorted[at].startswith(piece)


def _how_cut(text: str, others_stop: bool, known: Words) -> int | None:
    """How sure it is that a text was cut: 0 the surest; None if it seems whole."""
    last = text[-1]
    if last in _ENDS or "```" in text.rpartition("\n")[2] or _SIGNED.search(text[-80:]):
        return None
    words = _WORDS.findall(text[-400:])
    paragraph = text.rpartition("\n")[2]
    is_prose = len(_WORDS.findall(paragraph)) >= 8 and not re.match(r"\s*(?:[-*•|#>]|\d+[.)])", paragraph)
    if len(words) < 5 or not words:
        return None
    word = words[-1].casefold()
    if last in _OPEN_ENDS and is_prose:
        return 0 if others_stop else 1
    if not last.isalnum():
        return None
    if re.search(r"[;,] (?:and|or)$", text) or "/" in text.split()[-1]:
        return None  # a clause of a list, and the address of a page
    if word in _LITTLE_WORDS and words[-1].islower() and (word not in _STRANGE_LAST or others_stop):
        return 0
    if is_prose and words[-1].islower() and (others_stop or ". " in text) and begins_a_word(word, known):
        return 0
    if others_stop:
        return 1 if is_prose or last.isalpha() else 2
    if word in _STRANGE_LAST and is_prose and ". " in text:
        return 1
    if word in _STRANGE_LAST or (is_prose and word not in known.all and last.isalpha()):
        return 2
    return 3 if is_prose and any(stop in text[:-1] for stop in (". ", ".\n", "。")) else None


def _end(text: str) -> str:
    return excerpt(text, max(0, len(text) - 40))


def _unclosed(view: RowView, cell: Cell, notes: Notes) -> None:
    text = cell.text
    if text.count("```") % 2:
        found = f"a code fence (```) is opened and not closed: {_end(text.rstrip())}."
        _suspect(view, cell, notes, "unclosed-fence", found, "Close it, or give the whole text.", 0.03)
    elif "```" not in text and len(text.split()) > 1 and (sign := _left_open(text)) is not None:
        found = f"{sign!r} is opened and not closed; the text ends: {_end(text.rstrip())}."
        level = 0 if sign in "{[" else 1
        limit = 0.01 if level == 0 else 0.004
        _suspect(view, cell, notes, "unclosed-bracket", found, "Close it, or give the whole text.", limit, level)


_SMILEY = re.compile(r"[:;][-']?[()\[\]]")
_MENTIONED = re.compile(r"(['\"`‘“])[()\[\]{}]+['\"`’”]")
_PAIRS = {")": "(", "]": "[", "}": "{"}
_NEAR_END = 400
_BRACKETS = re.compile(r"[()\[\]{}]")


def _left_open(text: str) -> str | None:
    """The last bracket that is never closed, if brackets are balanced but for those left open at the end."""
    if not any(sign in text for sign in "([{"):
        return None
    held: list[str] = []
    for sign in _BRACKETS.findall(_MENTIONED.sub("", _SMILEY.sub("", text))):
        if sign in "([{":
            held.append(sign)
        elif held and held[-1] == _PAIRS[sign]:
            held.pop()
        elif sign != ")":
            return None
    near_end = text.rfind(held[-1]) if held else 0
    return held[-1] if held and len(text) - near_end < _NEAR_END else None


# ── the same again and again ────────────────────────────────────────────────────────────────────────────────────────


def _repeated(view: RowView, cell: Cell, notes: Notes) -> None:
    if len(cell.text) < 24:
        return
    unit = repeated_unit(cell.text)
    if unit is not None:
        found = f"{excerpt(unit, 0, 40)!r} comes again and again."
        _suspect(view, cell, notes, "repetition", found, "Cut the text before it repeats, or leave this row out.", 0.01)


def repeated_unit(text: str) -> str | None:
    """What a text says over and over, one after the other: a word six times, or a sentence of some length three times."""
    words = text.split()
    # four times the same leave at least so many pairs of words that were there before
    may_repeat = len(words) - 1 - len(set(itertools.pairwise(words))) >= 4
    for size in range(1, min(9, len(words) // 4 + 1)) if may_repeat else ():
        at = start_of_run(words, size, 6 if size == 1 else 5 if size == 2 else 4)
        unit = " ".join(words[at : at + size]) if at is not None else ""
        if sum(sign.isalpha() for sign in unit) >= 2:
            return unit
    sentences = [part.strip() for part in _SENTENCE.findall(text) if part.strip()]
    again = len(sentences) - len(set(sentences))  # a run of three has at least so many that were there before
    for size in range(1, min(again // 2, _MOST_SENTENCES) + 1):
        at = start_of_run(sentences, size, 3)
        unit = " ".join(sentences[at : at + size]) if at is not None else ""
        if len(unit) >= 20:
            return unit
    for word in words if max(map(len, words), default=0) > 15 else ():
        if len(word) > 15 and (match := _REPEATED_LETTERS.search(word)):
            return match[0][:20]
    return None


def start_of_run(items: Sequence[str], size: int, times: int) -> int | None:
    """Where the same `size` items first stand `times` times one after the other."""
    same = bytes(map(eq, items[size:], items))  # equal to the one `size` before it
    at = same.find(b"\1" * (size * (times - 1)))
    return None if at < 0 else at


def _finding(view: RowView, kind: str, place: str, found: str, mend: str) -> Finding:
    return Finding(kind, KINDS[kind], view.origin.file, view.origin.line, place, found, mend)


def _suspect(
    view: RowView, cell: Cell, notes: Notes, kind: str, found: str, mend: str, limit: float, level: int = 0
) -> None:
    notes.suspect(cell.peer, _finding(view, kind, cell.field, found, mend), limit, level)
