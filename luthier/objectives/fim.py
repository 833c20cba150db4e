"""Fill in the middle: a part of a text is moved to its end, so that a decoder learns to write it between the others.

loss = − Σ_n log p(y_n | all before) / N over the N tokens of the optimizer step, marks among them (Bavarian et al. 2022,
https://arxiv.org/abs/2207.14255, section 3). How a text is cut and put together: `luthier.corruption.middle`; it is
drawn anew in each epoch. A text that comes out too long loses the end of its suffix, as in the paper.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from luthier.corruption.middle import Marks, choose_order, fill_in_middle, split_middle
from luthier.corruption.vocabulary import Vocabulary
from luthier.errors import RecipeError
from luthier.objectives.contract import Corrupt
from luthier.objectives.pretraining import Pretraining, targeted
from luthier.types import Example, IntArray, ModelKind

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
        return partial(self._moved, vocabulary=vocabulary, marks=Marks(prefix, suffix, middle, vocabulary.end_id))

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

    def _moved(self, text: Example, draw: np.random.Generator, vocabulary: Vocabulary, marks: Marks) -> Example:
        tokens_T = text.parts[0].tokens_T
        order = choose_order(draw, rate=self.rate, spm_rate=self.spm_rate)
        if order is None:
            return _all_learned(text, tokens_T)
        is_text_T = vocabulary.is_text(tokens_T)
        first = int(np.argmax(is_text_T))
        tokenizer = vocabulary.tokenizer
        written = tokenizer.decode(tokens_T[is_text_T].tolist(), clean_up_tokenization_spaces=False)
        prefix_P, middle_M, suffix_S = (
            np.array(tokenizer(part, add_special_tokens=False)["input_ids"], dtype=np.int64)
            for part in split_middle(str(written), draw)
        )
        longest = len(tokens_T) + _ROOM - first
        moved_T = fill_in_middle(prefix_P, middle_M, suffix_S, order, marks)
        if moved_T is None or len(moved_T) > longest:
            moved_T = fill_in_middle(prefix_P, middle_M, suffix_S, order, marks, length=longest)
        return _all_learned(text, tokens_T if moved_T is None else np.concatenate([tokens_T[:first], moved_T]))


def _all_learned(text: Example, tokens_T: IntArray) -> Example:
    return targeted(tokens_T, np.arange(len(tokens_T) - 1, dtype=np.int64), tokens_T[1:], text.document, text.origin)
