"""Denoising: an encoder reads a text with its sentences out of order and spans hidden, and the decoder writes it as it was.

loss = − Σ_n log p(y_n | the noised text, the text before) / N over the N tokens of the texts of the optimizer step (Lewis
et al. 2019, BART, https://arxiv.org/abs/1910.13461, section 2.2). The noise and its order, which is fairseq's:
`luthier.corruption.infilling`; it is drawn anew in each epoch.
"""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from luthier.corruption.infilling import corrupt_text
from luthier.corruption.vocabulary import Vocabulary
from luthier.objectives.asking import Asking
from luthier.objectives.contract import Corrupt
from luthier.objectives.pretraining import Pretraining, answered, longest_within
from luthier.types import Example, IntArray, ModelKind, TextsAs

_TRIES = 20


class Denoising(Pretraining):
    """Learn to write a text as it was."""

    kinds: ClassVar[tuple[ModelKind, ...]] = ("encoder-decoder",)
    reads: ClassVar[TextsAs] = "read"

    kind: Literal["denoising"] = "denoising"
    mask: float = Field(0.3, ge=0.0, lt=1.0, description="Share of the words that are hidden.")
    poisson: float | None = Field(
        3.5, ge=1.0, description="Mean length of a hidden span in words; null: one word each."
    )
    random: float = Field(
        0.1, ge=0.0, le=1.0, description="Share of hidden spans that become random tokens, not masks."
    )
    replace: Literal["one", "none", "each"] = Field(
        "one", description="What a hidden span becomes: one mask, nothing, or a mask for each of its tokens."
    )
    permute: float = Field(1.0, ge=0.0, le=1.0, description="Share of the sentences that change places.")
    insert: float = Field(0.0, ge=0.0, le=1.0, description="Masks put in between, as a share of the tokens.")
    rotate: float = Field(0.0, ge=0.0, le=1.0, description="Share of the texts that begin at another of their tokens.")

    def longest_text(self, max_length: int) -> int:
        """L such that the text twice, and what is put in, are no more."""
        comes_to = {length: length + self._longest_inputs(length) for length in range(2, max_length)}
        return longest_within(max_length, comes_to)

    def corruption(self, vocabulary: Vocabulary) -> Corrupt:
        """Noise a text."""
        assert vocabulary.answer_start is not None, "an encoder-decoder's answers begin with a token"
        return partial(
            self._noised, vocabulary=vocabulary, mask_id=vocabulary.mask_id, answer_start=vocabulary.answer_start
        )

    def asking(self, vocabulary: Vocabulary) -> Asking:
        """A prompt is a text with masks, and the answer the whole text."""
        return Asking(shown_ids=frozenset([vocabulary.mask_id]))

    def _longest_inputs(self, length: int) -> int:
        grown = self.mask if self.replace == "each" else 0.0  # a span of no words adds a mask, and nothing is taken out
        return length + math.ceil((self.insert + grown) * length)

    def _noised(
        self, text: Example, draw: np.random.Generator, vocabulary: Vocabulary, mask_id: int, answer_start: int
    ) -> Example:
        tokens_T = text.parts[0].tokens_T
        is_text_T = vocabulary.is_text(tokens_T)
        num_before = int(np.argmax(is_text_T))
        num_after = int(np.argmax(is_text_T[::-1]))
        for _ in range(_TRIES):  # spans of no words may be so many that the inputs grow beyond what there is room for
            inputs_S: IntArray = corrupt_text(
                tokens_T,
                draw,
                mask_id=mask_id,
                random_ids=vocabulary.size,
                full_stop_ids=vocabulary.full_stops,
                words_T=vocabulary.words(tokens_T),
                mask=self.mask,
                poisson=self.poisson,
                random=self.random,
                replace=self.replace,
                permute=self.permute,
                insert=self.insert,
                rotate=self.rotate,
                num_before=num_before,
                num_after=num_after,
            )
            if len(inputs_S) <= self._longest_inputs(len(tokens_T)):
                return answered(text, inputs_S, tokens_T, answer_start)
        return answered(text, tokens_T, tokens_T, answer_start)
