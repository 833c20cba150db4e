"""An encoder that fills in hidden words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from luthier.corruption.vocabulary import Vocabulary
from luthier.errors import UsageError
from luthier.objectives.pretraining import targeted
from luthier.prediction.contract import Reader, Told, check_no_options, check_whole
from luthier.prediction.passes import check_fits, class_logits
from luthier.types import Example, Labelled, Origin

_MASK = re.compile(r"\[MASK\]|<mask>")
_SHOWN = 5


@dataclass(frozen=True)
class Filling:
    """A word (or a part of one) for a mask, and how probable it is."""

    word: str
    probability: float


@dataclass(frozen=True)
class Filler(Reader):
    """An encoder that fills in hidden words: its weights, how texts become tokens, and the adapter to use."""

    does: ClassVar[str] = "fills in hidden words"
    asking: ClassVar[str] = "--prompt 'A text with a [MASK] in it.'"
    base_answers: ClassVar[bool] = True

    def fill(self, text: str, count: int = _SHOWN) -> list[list[Filling]]:
        """For each mask of a text, the so many most probable words, best first. [MASK] and <mask> stand for the model's mask.

        Raises UsageError for a text without a mask; DataError for one beyond the model's context.
        """
        return self.fill_each([text], count)[0]

    def fill_each(self, texts: Sequence[str], count: int = _SHOWN) -> list[list[list[Filling]]]:
        """The same for several texts, computed together."""
        examples = [self._masked(text, index) for index, text in enumerate(texts)]
        check_fits(self.language_model, self.adapter, examples)
        found = []
        for logits_NV in self._said(examples, class_logits):
            share_NK, token_NK = logits_NV.softmax(-1).topk(min(count, logits_NV.shape[1]), dim=-1)
            found.append(
                [
                    [Filling(self._written(token), share) for token, share in zip(tokens, shares, strict=True)]
                    for tokens, shares in zip(token_NK.tolist(), share_NK.tolist(), strict=True)
                ]
            )
        return found

    def tell(self, texts: Sequence[str], options: Sequence[str] = ()) -> Told:
        """The best words for each mask of each text."""
        check_no_options(options, self.does)
        found = self.fill_each(texts)
        lines = [
            f"{', '.join(f'{filling.word} {filling.probability:.3f}' for filling in mask)}"
            for masks in found
            for mask in masks
        ]
        answers = tuple({"masks": [[vars(filling) for filling in mask] for mask in masks]} for masks in found)
        return Told(tuple(lines), answers)

    def _masked(self, text: str, index: int) -> Example:
        """A text whose targets are its masks."""
        check_whole(text)
        tokenizer = self.language_model.tokenizer
        mask_id, origin = Vocabulary(tokenizer).mask_id, Origin("text", index + 1)
        own = _MASK.sub(lambda _: str(tokenizer.mask_token), text)
        rendered = self.renderer.render_whole(Labelled(own, None, ""), origin)
        (source_N,) = np.nonzero(rendered.tokens_T == mask_id)
        if not len(source_N):
            raise UsageError(
                f"The text {text[:60]!r} has no mask, so there is nothing to fill in.",
                "Put [MASK] where a word is hidden.",
            )
        return targeted(rendered.tokens_T, source_N.astype(np.int64), np.zeros_like(source_N), index, origin)

    def _written(self, token: int) -> str:
        """A token as text, without the blanks around it."""
        return str(self.language_model.tokenizer.decode([token], clean_up_tokenization_spaces=False)).strip()
