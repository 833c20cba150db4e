"""UL2: each text is corrupted by one of seven denoisers, whose kind its first token says.

loss = − Σ_n log p(y_n | the corrupted text, the targets before) / N over the N target tokens of the optimizer step (Tay et
al. 2022, https://arxiv.org/abs/2205.05131, section 3.1). The denoisers: `luthier.corruption.ul2`. An encoder-decoder
reads the inputs and writes the targets; a decoder reads the inputs in both directions and writes the targets after them, as
in continued training with UL2 (U-PaLM, Tay et al. 2022, https://arxiv.org/abs/2210.11399).

Texts are cut to one length for all denoisers (the paper cuts them so that the inputs have one length).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from luthier.corruption.ul2 import DENOISERS, MODE_TOKENS, Mode, choose_denoiser, corrupt_as
from luthier.corruption.vocabulary import Vocabulary
from luthier.objectives.asking import Asking
from luthier.objectives.contract import Corrupt
from luthier.objectives.pretraining import Pretraining, answered, continued, longest_within
from luthier.types import Example, IntArray, ModelKind, TextsAs


class UL2(Pretraining):
    """Learn to write what was hidden in any of seven ways."""

    kinds: ClassVar[tuple[ModelKind, ...]] = ("decoder", "encoder-decoder")
    reads: ClassVar[TextsAs] = "raw"

    kind: Literal["ul2"] = "ul2"
    mode_tokens: bool = Field(
        True, description="Whether the inputs begin with [NLU], [NLG] or [S2S], which the tokenizer must then have."
    )
    weights: tuple[float, ...] | None = Field(
        None,
        min_length=len(DENOISERS),
        max_length=len(DENOISERS),
        description="How often each denoiser is drawn: R (3; 0.15), R (8; 0.15), X (3; 0.5), X (8; 0.5), X (64; 0.15), X (64; 0.5), S; unset: equally.",
    )

    def longest_text(self, max_length: int) -> int:
        """L such that, with the most spans of any denoiser, inputs and targets are no more."""
        comes_to = {
            length: length + 2 * max(denoiser.num_sentinels(length) for denoiser in DENOISERS) + 2 + self.mode_tokens
            for length in range(2, max_length)
        }
        return longest_within(max_length, comes_to)

    def corruption(self, vocabulary: Vocabulary) -> Corrupt:
        """Corrupt a text by a denoiser drawn for it."""
        marks = self._marks(vocabulary)
        return partial(
            self._corrupted,
            sentinels=vocabulary.sentinels,
            end_id=vocabulary.end_id,
            mode_ids=marks,
            answer_start=vocabulary.answer_start,
        )

    def asking(self, vocabulary: Vocabulary) -> Asking:
        """A prompt is a text with sentinels or one to be gone on from, which a decoder reads both ways.

        One that does not say its mode is put in one: R where sentinels stand in it, else S.
        """
        sentinels, marks = set(vocabulary.sentinels.tolist()), self._marks(vocabulary)

        def tokens(prompt: str) -> list[int]:
            said = next((mode for mode, token in MODE_TOKENS.items() if marks and prompt.startswith(token)), None)
            text = prompt if said is None else prompt.removeprefix(MODE_TOKENS[said]).lstrip()
            ids = vocabulary.encode(text)
            mode: Mode = said or ("R" if sentinels & set(ids) else "S")
            return [*([marks[mode]] if marks else []), *ids, vocabulary.end_id]

        return Asking(causal=False, tokens=tokens, shown_ids=frozenset([*sentinels, *(marks or {}).values()]))

    def _marks(self, vocabulary: Vocabulary) -> Mapping[Mode, int] | None:
        """What inputs begin with; None where they begin with nothing."""
        if not self.mode_tokens:
            return None
        return {mode: vocabulary.id_of(token, "objective.mode_tokens") for mode, token in MODE_TOKENS.items()}

    def _corrupted(
        self,
        text: Example,
        draw: np.random.Generator,
        sentinels: IntArray,
        end_id: int,
        mode_ids: Mapping[Mode, int] | None,
        answer_start: int | None,
    ) -> Example:
        denoiser = choose_denoiser(draw, weights=self.weights)
        inputs_S, targets_N = corrupt_as(
            text.parts[0].tokens_T, denoiser, draw, sentinels=sentinels, eos_id=end_id, mode_ids=mode_ids
        )
        if answer_start is None:
            return continued(text, inputs_S, targets_N)
        return answered(text, inputs_S, targets_N, answer_start)
