"""Prefix language modelling: a decoder reads the first part of a text in both directions and writes the rest.

loss = − Σ_n log p(y_n | the first part, the rest before) / N over the N tokens of the second parts of the optimizer step
(Raffel et al. 2019, https://arxiv.org/abs/1910.10683, section 3.2.1). The cut is uniform over the places between tokens and
drawn anew in each epoch. The first part is a segment whose tokens all see each other, the rest one that follows it.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from luthier.corruption.prefix import split_point
from luthier.corruption.vocabulary import Vocabulary
from luthier.objectives.asking import Asking
from luthier.objectives.contract import Corrupt
from luthier.objectives.pretraining import Pretraining, continued
from luthier.types import Example, ModelKind


class PrefixLM(Pretraining):
    """Learn to write on."""

    kinds: ClassVar[tuple[ModelKind, ...]] = ("decoder",)

    kind: Literal["prefix-lm"] = "prefix-lm"

    def corruption(self, vocabulary: Vocabulary) -> Corrupt:
        """Cut a text in two."""
        return _cut

    def asking(self, vocabulary: Vocabulary) -> Asking:
        """A prompt is the first part of a text."""
        return Asking(causal=False)


def _cut(text: Example, draw: np.random.Generator) -> Example:
    tokens_T = text.parts[0].tokens_T
    at = split_point(len(tokens_T), draw)
    return continued(text, tokens_T[:at], tokens_T[at:])
