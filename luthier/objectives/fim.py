"""Fill in the middle: a part of a text is moved to its end, so that a decoder learns to write it between the others.

loss = − Σ_n log p(y_n | all before) / N over the N tokens of the optimizer step, marks among them (Bavarian et al. 2022,
https://arxiv.org/abs/2207.14255, section 3). How a text is cut and put together: `luthier.corruption.middle`; it is
drawn anew in each epoch. A text that comes out too long loses the end of its suffix.

A text longer than data.max_length is cut into pieces. At the level of contexts (the paper's section 4.4, which finds it better) it
is cut first, and a part of each piece is moved within it, document by document where the row holds several, each behind the
end of another. At the level of documents a part of the whole text is moved and the pieces are cut from that, so that marks
may come to lie in different pieces.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from luthier.corruption.middle import Marks, choose_order, cut_places, documents_of, fill_in_middle
from luthier.corruption.vocabulary import Vocabulary
from luthier.errors import RecipeError
from luthier.objectives.contract import Corrupt
from luthier.objectives.pretraining import Pretraining, targeted
from luthier.types import Example, IntArray, ModelKind, Origin, Rendered

MARKS = (
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"),
    ("<PRE>", "<SUF>", "<MID>"),
)
"""What models call the marks: StarCoder, Qwen2.5-Coder, SantaCoder, Code Llama."""

_ROOM = 16
"""How many tokens the marks, and parts that are encoded by themselves, may add to a text."""


class FIM(Pretraining):
    """Learn to write in between."""

    kinds: ClassVar[tuple[ModelKind, ...]] = ("decoder",)

    kind: Literal["fim"] = "fim"
    rate: float = Field(
        0.5, ge=0.0, le=1.0, description="Share of the texts that are cut; the others stay as they are."
    )
    spm_rate: float = Field(0.5, ge=0.0, le=1.0, description="Share of those whose suffix comes first.")
    level: Literal["context", "document"] = Field(
        "context",
        description="Whether a text that is cut into pieces has a part moved within each piece, or within the text before it is cut.",
    )
    marks: tuple[str, str, str] | None = Field(
        None,
        description="The tokens before prefix, suffix and middle; unset: those of StarCoder, Qwen and others if they are there.",
    )

    def longest_text(self, max_length: int) -> int:
        """Room is left for the marks."""
        return max(2, max_length - _ROOM)

    def corruption(self, vocabulary: Vocabulary) -> Corrupt:
        """Move a part of a text to its end."""
        prefix, suffix, middle = (vocabulary.id_of(token, "objective.marks") for token in self._marks(vocabulary))
        return partial(self._drawn, vocabulary=vocabulary, marks=Marks(prefix, suffix, middle, vocabulary.end_id))

    def _marks(self, vocabulary: Vocabulary) -> tuple[str, str, str]:
        if self.marks is not None:
            return self.marks
        for marks in MARKS:
            if vocabulary.first_of(marks[:1]) is not None:
                return marks
        raise RecipeError(
            "The tokenizer has no marks for prefix, suffix and middle.",
            "Add them with model.add_tokens: [<fim_prefix>, <fim_suffix>, <fim_middle>], or choose a model for code.",
            field="objective.marks",
        )

    def example(self, rendered: Rendered, document: int, origin: Origin) -> Example:
        """The text as it is; at the level of documents, with what it is a piece of."""
        text = super().example(rendered, document, origin)
        return text if self.level == "context" else replace(text, piece=rendered.piece)

    def _drawn(self, text: Example, draw: np.random.Generator, vocabulary: Vocabulary, marks: Marks) -> Example:
        tokens_T, piece = text.parts[0].tokens_T, text.piece
        if piece is not None:
            moved_T = self._moved(piece.whole_T, _ROOM, draw, vocabulary, marks)
            if moved_T is None:
                return _all_learned(text, tokens_T)
            own_T = np.array_split(moved_T, piece.count)[piece.index]
            return _all_learned(text, np.concatenate([tokens_T[: piece.num_lead], own_T]))
        first = int(np.argmax(vocabulary.is_text(tokens_T)))
        found_D, room = [tokens_T[:first]], _ROOM
        body_T = tokens_T[first:]
        for document_T in documents_of(body_T, vocabulary.end_id) if self.level == "context" else [body_T]:
            moved_T = self._moved(document_T, room, draw, vocabulary, marks)
            found_D.append(document_T if moved_T is None else moved_T)
            room += len(document_T) - len(found_D[-1])
        return _all_learned(text, np.concatenate(found_D))

    def _moved(
        self, document_T: IntArray, room: int, draw: np.random.Generator, vocabulary: Vocabulary, marks: Marks
    ) -> IntArray | None:
        """A document with its middle at its end, longer by `room` tokens at most; None where it stays as it is."""
        order = choose_order(draw, rate=self.rate, spm_rate=self.spm_rate)
        if order is None:
            return None
        is_whole = len(document_T) > 0 and document_T[-1] == vocabulary.end_id
        units = vocabulary.units(document_T[:-1] if is_whole else document_T)
        if not units:
            return None
        start, stop = cut_places(len(units), draw)
        parts = (vocabulary.tokens_of(part) for part in (units[:start], units[start:stop], units[stop:]))
        prefix_P, middle_M, suffix_S = parts
        longest = len(document_T) + room
        moved_T = fill_in_middle(prefix_P, middle_M, suffix_S, order, marks)
        assert moved_T is not None, "nothing is taken away where no length is asked for"
        if len(moved_T) <= longest:
            return moved_T
        return fill_in_middle(prefix_P, middle_M, suffix_S, order, marks, length=longest)


def _all_learned(text: Example, tokens_T: IntArray) -> Example:
    return targeted(tokens_T, np.arange(len(tokens_T) - 1, dtype=np.int64), tokens_T[1:], text.document, text.origin)
