"""Entities in tags: by CoNLL's rules, whatever the marks."""

from __future__ import annotations

import pytest

from luthier.data.entities import Span, are_span_tags, spans_of

CASES = [
    ("O B-a I-a O B-b", [("a", 1, 3), ("b", 4, 5)]),
    ("B-a B-a I-a", [("a", 0, 1), ("a", 1, 3)]),  # B begins another of the same kind
    ("I-a I-a O I-b I-a", [("a", 0, 2), ("b", 3, 4), ("a", 4, 5)]),  # CoNLL 2003 begins with I
    ("B-a I-b I-b", [("a", 0, 1), ("b", 1, 3)]),  # another kind begins another entity
    ("O I-a", [("a", 1, 2)]),
    ("S-a B-b I-b E-b E-b", [("a", 0, 1), ("b", 1, 4), ("b", 4, 5)]),
    ("U-a B-b L-b I-b", [("a", 0, 1), ("b", 1, 3), ("b", 3, 4)]),
    ("B-a-b I-a-b", [("a-b", 0, 2)]),
    ("O O", []),
    ("", []),
]


@pytest.mark.parametrize(("tags", "spans"), CASES)
def test_entities_are_those_of_the_conll_scorer(tags: str, spans: list[tuple[str, int, int]]) -> None:
    assert spans_of(tags.split()) == [Span(*span) for span in spans]


def test_tags_of_words_alone_mark_no_entities() -> None:
    assert are_span_tags(("B-a", "I-a", "O"))
    assert not are_span_tags(("NOUN", "VERB", "O"))
    assert not are_span_tags(("O",))
