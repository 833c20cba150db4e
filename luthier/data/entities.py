"""Entities in tags: which words each covers, and of what kind it is.

The rules of CoNLL's scorer (Tjong Kim Sang and De Meulder 2003, https://aclanthology.org/W03-0419), as seqeval has them too:
an entity begins at B (or S, U), and at I (or E, L) where the word before belongs to none or to one of another kind. So
tags that never say B, and those of a model that breaks the order, have entities all the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_BEGINS, _ENDS = frozenset("BSU"), frozenset("ELSU")
_TAG = re.compile(r"O|[BIESLU]-\S.*")


@dataclass(frozen=True)
class Span:
    """An entity: its kind, its first word and the one after its last."""

    kind: str
    start: int
    end: int


def are_span_tags(classes: Sequence[str]) -> bool:
    """Whether tags such as B-person and O mark entities, rather than say something of each word alone."""
    return all(_TAG.fullmatch(name) for name in classes) and any(name != "O" for name in classes)


def spans_of(tags: Sequence[str]) -> list[Span]:
    """The entities that tags mark, in order."""
    spans: list[Span] = []
    kind, start, is_open = "", 0, False
    for index, tag in enumerate(tags):
        mark, _, named = tag.partition("-")
        goes_on = is_open and mark != "O" and mark not in _BEGINS and named == kind
        if is_open and not goes_on:
            spans.append(Span(kind, start, index))
        if mark != "O" and not goes_on:
            kind, start = named, index
        is_open = mark != "O"
        if mark in _ENDS:
            spans.append(Span(kind, start, index + 1))
            is_open = False
    return [*spans, Span(kind, start, len(tags))] if is_open else spans
