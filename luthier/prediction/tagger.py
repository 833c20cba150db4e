"""A model that tags words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from luthier.data.entities import are_span_tags, spans_of
from luthier.errors import UsageError
from luthier.objectives import TokenClassification
from luthier.prediction.contract import Reader, Told, check_no_options, check_whole
from luthier.prediction.passes import class_logits
from luthier.types import Tagged

_WORD = re.compile(r"\w+(?:[-'’.]\w+)*|[^\w\s]")


@dataclass(frozen=True)
class TaggedWord:
    """A word, its most probable tag, and how probable that is."""

    word: str
    tag: str
    probability: float


@dataclass(frozen=True)
class Entity:
    """What tags such as B-person and I-person mark: its kind and text, its first word and the one after its last."""

    kind: str
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class TaggedText:
    """A text's words with their tags; and its entities, where the tags mark some."""

    words: tuple[TaggedWord, ...]
    entities: tuple[Entity, ...]

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags alone."""
        return tuple(word.tag for word in self.words)


@dataclass(frozen=True)
class Tagger(Reader):
    """A model that tags words: its weights, how texts become tokens, and the adapter to use."""

    does: ClassVar[str] = "tags words"

    def tag(self, text: str | Sequence[str]) -> TaggedText:
        """The tags of a text, or of words. A text is parted at blanks, marks of punctuation being words of their own.

        Raises UsageError for a text without words; DataError for one that is too long, and for words that have no token.
        """
        return self.tag_each([text])[0]

    def tag_each(self, texts: Sequence[str | Sequence[str]]) -> list[TaggedText]:
        """The same of several, computed together."""
        parted = [_parted(text) for text in texts]
        classes = self.language_model.classes
        records = [Tagged(words, (classes[0],) * len(words)) for words, _ in parted]
        said = self._said(self._examples(TokenClassification(classes=classes), records), class_logits)
        found = []
        for (words, pieces), logits_KC in zip(parted, said, strict=True):
            share_K, number_K = logits_KC.softmax(-1).max(-1)
            tags = [classes[number] for number in number_K.tolist()]
            spans = spans_of(tags) if are_span_tags(classes) else []
            found.append(
                TaggedText(
                    tuple(map(TaggedWord, words, tags, share_K.tolist())),
                    tuple(
                        Entity(span.kind, pieces.between(span.start, span.end), span.start, span.end) for span in spans
                    ),
                )
            )
        return found

    def tell(self, texts: Sequence[str], options: Sequence[str] = ()) -> Told:
        """Each text's words with their tags, those outside of all entities bare; and its entities."""
        check_no_options(options, self.does)
        found = self.tag_each(texts)
        lines = []
        for each in found:
            marked = (word.word if word.tag == "O" else f"{word.word}/{word.tag}" for word in each.words)
            entities = "; ".join(f"{entity.kind}: {entity.text}" for entity in each.entities)
            lines.append(f"{' '.join(marked)}{f'  ({entities})' if entities else ''}")
        answers = tuple(
            {"words": [vars(word) for word in each.words], "entities": [vars(entity) for entity in each.entities]}
            for each in found
        )
        return Told(tuple(lines), answers)


@dataclass(frozen=True)
class _Pieces:
    """Where each word is in a text."""

    text: str
    places: tuple[tuple[int, int], ...]

    def between(self, start: int, end: int) -> str:
        """The text of words start..end, as it stands there."""
        return self.text[self.places[start][0] : self.places[end - 1][1]]


def _parted(text: str | Sequence[str]) -> tuple[tuple[str, ...], _Pieces]:
    """The words of a text, or those given, and where they are in it (or in a text of words with a blank between them)."""
    if isinstance(text, str):
        check_whole(text)
        matches = list(_WORD.finditer(text))
        words, places = tuple(match[0] for match in matches), tuple(match.span() for match in matches)
    else:
        for word in text:
            check_whole(word)
        words = tuple(text)
        text = " ".join(words)
        ends = [sum(len(word) + 1 for word in words[: index + 1]) - 1 for index in range(len(words))]
        places = tuple((end - len(word), end) for word, end in zip(words, ends, strict=True))
    if not words or not all(word.strip() for word in words):
        raise UsageError("There is no word to tag.", "Give a text, or a list of words of which none is empty.")
    return words, _Pieces(text, places)
