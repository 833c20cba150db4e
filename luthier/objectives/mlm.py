"""Masked language modelling: an encoder says what stood at hidden places, seeing the text on both sides of them.

loss = − Σ_n log p(y_n | the corrupted text) / N over the N chosen tokens of the optimizer step (Devlin et al. 2018, BERT,
https://arxiv.org/abs/1810.04805, section 3.1). How tokens are chosen: `luthier.corruption.masking`. The choice is
drawn anew in each epoch; held-out texts keep theirs.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from luthier.corruption.masking import mask_tokens
from luthier.corruption.vocabulary import Vocabulary
from luthier.models.heads import WordsHead
from luthier.objectives.contract import Corrupt
from luthier.objectives.pretraining import Pretraining, targeted
from luthier.types import Example, ModelKind, TextsAs


class MLM(Pretraining):
    """Learn to fill in hidden words."""

    writes: ClassVar[bool] = False
    kinds: ClassVar[tuple[ModelKind, ...]] = ("encoder",)
    reads: ClassVar[TextsAs] = "read"
    in_place: ClassVar[bool] = True
    loss_unit: ClassVar[str] = "nats per hidden token"
    targets_are: ClassVar[str] = "hidden tokens"

    kind: Literal["mlm"] = "mlm"
    rate: float = Field(
        0.15, gt=0.0, lt=1.0, description="Share of the tokens that are chosen; at least one of each text."
    )
    mask_share: float = Field(0.8, ge=0.0, le=1.0, description="Share of the chosen tokens that become the mask token.")
    random_share: float = Field(
        0.1, ge=0.0, le=1.0, description="Share of them that become a random token; the rest stay."
    )
    whole_words: bool = Field(False, description="Choose whole words rather than tokens.")
    sampler: Literal["bernoulli", "exact", "stochastic-count"] = Field(
        "bernoulli",
        description="How many are chosen: each token (or word) by itself, as transformers does; a fixed share, as BERT did; or a share whose mean is exact, as RoBERTa did.",
    )

    def head(self, seed: int) -> WordsHead:
        """The encoder's head over words."""
        return WordsHead()

    def corruption(self, vocabulary: Vocabulary) -> Corrupt:
        """Hide some of a text's tokens."""
        return partial(self._hidden, vocabulary=vocabulary, mask_id=vocabulary.mask_id)

    def _hidden(self, text: Example, draw: np.random.Generator, vocabulary: Vocabulary, mask_id: int) -> Example:
        tokens_T = text.parts[0].tokens_T
        inputs_T, chosen_N = mask_tokens(
            tokens_T,
            vocabulary.is_text(tokens_T),
            draw,
            mask_id=mask_id,
            random_ids=vocabulary.size,
            rate=self.rate,
            mask_share=self.mask_share,
            random_share=self.random_share,
            sampler=self.sampler,
            words_T=vocabulary.words(tokens_T) if self.whole_words else None,
            at_least_one=True,
        )
        return targeted(inputs_T, chosen_N, tokens_T[chosen_N], text.document, text.origin)
