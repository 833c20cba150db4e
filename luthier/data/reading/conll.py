"""CoNLL: a word a line with its tags in columns, a blank line after each sentence.

    Ada     B-person        the words are the first column, the tags the last
    lives   O

    EU NNP B-NP B-ORG       spaces separate the columns where there is no tab
    -DOCSTART- -X- O O      marks between documents are passed over, as are comments (# and a space)

Of CoNLL-U (ten columns, the first a number) the words are the second column and the tags the fourth: parts of speech.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from luthier.data.reading.content import Content
from luthier.data.reading.rows import Announce, Row, sampled
from luthier.errors import DataError
from luthier.types import Origin

_BLANK = " \t\r\n"
_LINES_TO_LOOK_AT = 200
_SPAN_TAG = re.compile(r"O|[BIESLUM]-\S+")
_WORD_NUMBER = re.compile(r"\d+([-.]\d+)?")
_PART_NUMBER = re.compile(r"\d+[-.]\d+")


@dataclass(frozen=True)
class _Columns:
    """How many columns there are, what separates them (None: spaces), and which hold the words and the tags."""

    width: int
    separator: str | None
    word: int
    tag: int
    are_numbered: bool

    def cells(self, line: str) -> list[str]:
        """The line's columns."""
        return _split(line, self.separator)


def read_conll(content: Content, announce: Announce) -> Iterator[Row]:
    """A row for each sentence, with the columns tokens and tags; its line is that of its first word."""
    head, lines = sampled(content.lines(), _LINES_TO_LOOK_AT, lambda line: len(line[1]))
    columns = _columns([text for _, text in head])
    if columns is None:
        next(lines, None)
        return
    if columns.are_numbered:
        announce(f"{content.name} is CoNLL-U: the words are its second column, the tags its fourth (parts of speech).")
    elif columns.width > 2:
        announce(f"{content.name}: of {columns.width} columns the first holds the words and the last the tags.")
    words: list[str] = []
    tags: list[str] = []
    begin = 0
    for number, line in lines:
        if not line.strip(_BLANK):
            if words:
                yield Row({"tokens": words, "tags": tags}, Origin(content.name, begin))
            words, tags = [], []
            continue
        try:
            pair = _word_and_tag(line, number, columns, content.name)
        except DataError as error:
            content.tell(error)
            continue
        if pair is not None:
            begin = begin if words else number
            words.append(pair[0])
            tags.append(pair[1])
    if words:
        yield Row({"tokens": words, "tags": tags}, Origin(content.name, begin))


def has_span_tags(lines: Sequence[str]) -> bool:
    """Whether lines are words with tags such as B-person and O: what CoNLL can be told by without its ending."""
    columns = _columns(lines)
    if columns is None or columns.width < 2:
        return False
    rows = [columns.cells(line) for line in lines if line.strip(_BLANK) and not _is_between(line, columns.separator)]
    fitting = [row for row in rows if len(row) == columns.width and _SPAN_TAG.fullmatch(row[-1])]
    has_spans = any(row[-1] != "O" for row in fitting)
    return has_spans and 20 * len(fitting) >= 19 * len(rows)


def _columns(lines: Sequence[str]) -> _Columns | None:
    """The columns that the first line with a word has; None if there is none."""
    separator = "\t" if any("\t" in line.strip(_BLANK) for line in lines) else None
    rows = [_split(line, separator) for line in lines if line.strip(_BLANK) and not _is_between(line, separator)]
    if not rows:
        return None
    width = len(rows[0])
    if width == 10 and _WORD_NUMBER.fullmatch(rows[0][0]):
        return _Columns(width, separator, word=1, tag=3, are_numbered=True)
    return _Columns(width, separator, word=0, tag=width - 1, are_numbered=False)


def _split(line: str, separator: str | None) -> list[str]:
    if separator is None:
        return line.strip(_BLANK).split(" ") if "  " not in line else re.split(" +", line.strip(_BLANK))
    return line.rstrip("\r\n").split(separator)


def _is_between(line: str, separator: str | None) -> bool:
    """Whether a line is a comment or a mark between documents, not a word."""
    is_comment = line.startswith("# ") and (separator is None or separator not in line)
    return is_comment or line.startswith("-DOCSTART-")


def _word_and_tag(line: str, number: int, columns: _Columns, name: str) -> tuple[str, str] | None:
    """What a line holds; None for comments, marks, and the parts that CoNLL-U numbers 3-4 or 3.1."""
    cells = columns.cells(line)
    is_whole = len(cells) == columns.width and columns.width > 1
    if is_whole and columns.are_numbered and _PART_NUMBER.fullmatch(cells[0]):
        return None
    if is_whole and cells[columns.word].strip() and cells[columns.tag].strip() and not line.startswith("-DOCSTART-"):
        return cells[columns.word], cells[columns.tag].strip()
    if _is_between(line, columns.separator) or (columns.are_numbered and line.startswith("#")):
        return None
    separated = "a tab" if columns.separator else "a space"
    mend = f"Write a word and its tag a line, separated by {separated}, and a blank line after each sentence."
    if is_whole:
        raise DataError("the word or its tag is blank.", mend, file=name, line=number)
    if columns.width == 1:
        raise DataError("this line holds one column, but a word and its tag are two.", mend, file=name, line=number)
    found = f"this line has {len(cells)} columns, but the first has {columns.width}."
    raise DataError(found, mend, file=name, line=number)
