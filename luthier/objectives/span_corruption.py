"""Span corruption: spans of a text are cut out, and an encoder-decoder writes them.

loss = − Σ_n log p(y_n | the text with sentinels, the targets before) / N over the N target tokens of the optimizer step
(Raffel et al. 2019, T5, https://arxiv.org/abs/1910.10683, section 3.1.4). The exact algorithm:
`luthier.corruption.spans`. Inputs and targets of a text together come to data.max_length at most: 626 gives T5's
inputs of 512 and targets of 114. Spans are drawn anew in each epoch.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from luthier.corruption.spans import corrupt_spans, num_noise
from luthier.corruption.vocabulary import Vocabulary
from luthier.objectives.asking import Asking
from luthier.objectives.contract import Corrupt
from luthier.objectives.pretraining import Pretraining, answered, longest_within
from luthier.types import Example, IntArray, ModelKind, TextsAs


class SpanCorruption(Pretraining):
    """Learn to write what was cut out."""

    kinds: ClassVar[tuple[ModelKind, ...]] = ("encoder-decoder",)
    reads: ClassVar[TextsAs] = "raw"

    kind: Literal["span-corruption"] = "span-corruption"
    density: float = Field(0.15, gt=0.0, lt=1.0, description="Share of the tokens that are cut out.")
    mean_length: float = Field(3.0, ge=1.0, description="Mean length of the spans, in tokens.")
    roll: bool = Field(False, description="Turn the spans around the text, so that it need not end in one.")

    def longest_text(self, max_length: int) -> int:
        """L with L + 2 s + 2 tokens at most, s its spans; a rolled mask may cut one in two."""
        comes_to = {
            length: length + 2 * (num_noise(length, self.density, self.mean_length)[1] + self.roll) + 2
            for length in range(2, max_length)
        }
        return longest_within(max_length, comes_to)

    def corruption(self, vocabulary: Vocabulary) -> Corrupt:
        """Cut spans out of a text."""
        assert vocabulary.answer_start is not None, "an encoder-decoder's answers begin with a token"
        return partial(
            self._cut,
            sentinels=vocabulary.sentinels,
            end_id=vocabulary.end_id,
            answer_start=vocabulary.answer_start,
        )

    def asking(self, vocabulary: Vocabulary) -> Asking:
        """A prompt is a text with sentinels, and the answer says what each stands for."""

        def tokens(prompt: str) -> list[int]:
            return [*vocabulary.encode(prompt), vocabulary.end_id]

        return Asking(tokens=tokens, shown_ids=frozenset(vocabulary.sentinels.tolist()))

    def _cut(
        self, text: Example, draw: np.random.Generator, sentinels: IntArray, end_id: int, answer_start: int
    ) -> Example:
        inputs_S, targets_N = corrupt_spans(
            text.parts[0].tokens_T,
            draw,
            sentinels=sentinels,
            eos_id=end_id,
            density=self.density,
            mean_length=self.mean_length,
            roll=self.roll,
        )
        return answered(text, inputs_S, targets_N, answer_start)
