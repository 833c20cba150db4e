"""Tags: words, and a tag for each.

    {"tokens": ["Anna", "lives", "in", "Oslo"], "tags": ["B-person", "O", "O", "B-location"]}

The form of CoNLL's shared tasks (Tjong Kim Sang and De Meulder 2003, https://aclanthology.org/W03-0419) on the hub and of
files in CoNLL's own form. A tag is a name or a whole number, which then is its name. Where tags are B- and I-, every I-
must go on with an entity of its kind, unless the rows begin entities with I- as CoNLL 2003 did. Of several tags for one word
(B-person,B-group in WNUT 17) one is taken: of those that go on with the entity before, or else of all, the first of those
whose entity goes on longest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from luthier.data.formats.table import Recognition, Table, as_filled_text, as_list, fault, one, required
from luthier.data.reading import Row, kind_of
from luthier.data.settings import FormatName
from luthier.types import Gives, Tagged

NAME: FormatName = "tags"
GIVES: Gives = "tags"
COLUMNS = "tokens and tags, two lists of the same length (or ner_tags, pos_tags, labels)"

WORDS = ("tokens", "words")
TAGS = ("tags", "ner_tags", "labels", "ner", "pos_tags", "chunk_tags", "label")
_MARKED = re.compile(r"([BIESLU])-(.+)")
GOES_ON = ("I", "E", "L")
"""Marks that only stand after another word of the same entity; B begins one, S and U are one alone."""


def recognise(table: Table) -> Recognition | None:
    """Rows with a list of words and one of tags."""
    words = next((column for column in table.columns(WORDS) if table.mostly(column, _listed)), None)
    tags = next((column for column in table.columns(TAGS) if table.mostly(column, _listed)), None)
    return None if words is None or tags is None else recognised(table, words, tags)


def recognised(table: Table, words: str, tags: str) -> Recognition:
    """How rows are read that have their words and their tags in these columns."""
    plain, begun = _begins(table, tags)
    by_i = plain > begun
    notes: tuple[str, ...] = (
        (f"Entities of {tags} begin with I-, so no order of B- and I- is asked for.",) if by_i else ()
    )
    if any("," in tag and _MARKED.match(tag) for row in table.rows for tag in _tags_of(row, tags)):
        notes += (f"Of several tags for one word in {tags} one is taken.",)
    reason = f"{tags} has a tag for each of {words}"
    return Recognition(
        reason, frozenset({words, tags}), one(to_record, words=words, tags=tags, in_order=not by_i), notes
    )


def to_record(row: Row, words: str = "tokens", tags: str = "tags", in_order: bool = True) -> Tagged:
    """The row's words and tags. in_order: whether an I- must go on with an entity."""
    listed = as_list(row, words, required(row, row.values, words, words), "words")
    marks = as_list(row, tags, required(row, row.values, tags, tags), "tags")
    if not listed:
        raise fault(row, words, "the list of words is empty.", "Fill it, or leave this row out.")
    if len(listed) != len(marks):
        found = f"there are {len(listed)} words and {len(marks)} tags."
        raise fault(row, tags, found, "Give every word one tag.")
    texts = listed
    if not all(isinstance(word, str) and word.strip() for word in listed):
        texts = [as_filled_text(row, f"{words}[{index}]", word, "the word") for index, word in enumerate(listed)]
    named = [_tags(row, tags, index, mark) for index, mark in enumerate(marks)]
    taken: list[str] = []
    before = "O"
    for index, several in enumerate(named):
        tag = several[0] if len(several) == 1 else _one_of(named, index, before)
        if in_order and tag.startswith(GOES_ON) and not _may_follow(tag, before):
            found = f"the tag {tag} goes on with no entity: the tag before it is {before if index else 'none'}."
            raise fault(row, f"{tags}[{index}]", found, f"Write B-{tag[2:]} where the entity begins.")
        taken.append(tag)
        before = tag
    return Tagged(tuple(texts), tuple(taken))


def _tags(row: Row, column: str, index: int, value: Any) -> list[str]:
    """The names of a word's tags: one, or several where commas part them."""
    if isinstance(value, int) and not isinstance(value, bool):
        return [str(value)]
    if not isinstance(value, str) or not value.strip():
        found = f"expected the name or the number of a tag, found {'nothing' if isinstance(value, str) else kind_of(value)}."
        mend = "Write it as a string or a whole number; a word outside of all is O."
        raise fault(row, f"{column}[{index}]", found, mend)
    name = value.strip()
    return [part.strip() for part in name.split(",")] if "," in name and _MARKED.match(name) else [name]


def _one_of(named: Sequence[Sequence[str]], index: int, before: str) -> str:
    """The tag taken for a word: see the head of this file."""
    going_on = [tag for tag in named[index] if tag.startswith(GOES_ON) and _may_follow(tag, before)]
    return max(going_on or named[index], key=lambda tag: _length(named, index, tag[2:]))  # the first of equal ones


def _length(named: Sequence[Sequence[str]], index: int, kind: str) -> int:
    """How many words after this one go on with an entity of this kind."""
    after = index + 1
    while after < len(named) and f"I-{kind}" in named[after]:
        after += 1
    return after - index


def _may_follow(tag: str, before: str) -> bool:
    """Whether a tag may stand after another: one that goes on with an entity only after its beginning or its inside."""
    mark, last = _MARKED.fullmatch(tag), _MARKED.fullmatch(before)
    if mark is None:  # a tag such as INTJ
        return True
    return last is not None and last[1] in ("B", "I") and last[2] == mark[2]


def _begins(table: Table, tags: str) -> tuple[int, int]:
    """How many entities of the first rows begin with I- (one that nothing comes before), and how many with B-."""
    plain = begun = 0
    for row in table.first:
        before = "O"
        for tag in _tags_of(row, tags):
            first = tag.partition(",")[0]
            plain += first.startswith("I-") and not _MARKED.match(before)
            begun += first.startswith("B-")
            before = first
    return plain, begun


def _tags_of(row: Row, column: str) -> Iterator[str]:
    value = row.values.get(column)
    listed: Sequence[Any] = value if isinstance(value, list) else []
    return (tag for tag in listed if isinstance(tag, str))


def _listed(value: object) -> bool:
    return isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith("["))
