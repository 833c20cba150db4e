"""Prefix language modelling: the first part of a text is read in both directions, and the rest is written.

loss = − Σ_n log p(y_n | the first part, the rest before) / N over the N tokens of the second parts of the optimizer step
(Raffel et al. 2019, https://arxiv.org/abs/1910.10683, section 3.2.1). The cut is uniform over the places between tokens and
drawn anew in each epoch. In a decoder the first part is a segment whose tokens all see each other, the rest one that follows
it. In an encoder-decoder the encoder reads the first part and the decoder writes the rest; both end with the end-of-text token.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import numpy as np

from luthier.corruption.prefix import cut_at, split_point
from luthier.corruption.vocabulary import Vocabulary
from luthier.objectives.asking import Asking
from luthier.objectives.contract import Corrupt
from luthier.objectives.pretraining import Pretraining, answered, continued, longest_within
from luthier.types import Example, ModelKind


class PrefixLM(Pretraining):
    """Learn to write on."""

    kinds: ClassVar[tuple[ModelKind, ...]] = ("decoder", "encoder-decoder")

    kind: Literal["prefix-lm"] = "prefix-lm"

    def longest_text(self, max_length: int) -> int:
        """Two tokens are left for the ends of an encoder-decoder's two parts."""
        return longest_within(max_length, {length: length + 2 for length in range(2, max_length)})

    def corruption(self, vocabulary: Vocabulary) -> Corrupt:
        """Cut a text in two."""
        if vocabulary.answer_start is None:
            return _cut
        return partial(_cut_for_both, end_id=vocabulary.end_id, answer_start=vocabulary.answer_start)

    def asking(self, vocabulary: Vocabulary) -> Asking:
        """A prompt is the first part of a text."""
        return Asking(causal=False)


def _cut(text: Example, draw: np.random.Generator) -> Example:
    tokens_T = text.parts[0].tokens_T
    at = split_point(len(tokens_T), draw)
    return continued(text, tokens_T[:at], tokens_T[at:])


def _cut_for_both(text: Example, draw: np.random.Generator, end_id: int, answer_start: int) -> Example:
    tokens_T = text.parts[0].tokens_T
    if tokens_T[-1] == end_id:  # each part gets one of its own
        tokens_T = tokens_T[:-1]
    inputs_S, targets_N = cut_at(tokens_T, split_point(len(tokens_T), draw), eos_id=end_id)
    return answered(text, inputs_S, targets_N, answer_start)
