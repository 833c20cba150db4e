"""What an objective of pre-training must know of a tokenizer: its marks, and where words begin and sentences end.

Shapes: V tokens of the vocabulary, T tokens of a text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from luthier.errors import RecipeError
from luthier.types import IntArray

_SENTINEL = re.compile(r"<extra_id_(\d+)>")
_ADD = "Add it to the model with model.add_tokens, or choose a model whose tokenizer has it."


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's vocabulary. answer_start: the token that an encoder-decoder's answers begin with; None for other models."""

    tokenizer: PreTrainedTokenizerBase
    answer_start: int | None = None

    @property
    def size(self) -> int:
        """The number of tokens, added ones among them."""
        return len(self.tokenizer)

    @property
    def end_id(self) -> int:
        """The token that ends a text. Raises: RecipeError if there is none."""
        return self._special("end-of-text token", "eos_token", self.tokenizer.eos_token_id)

    @property
    def mask_id(self) -> int:
        """The token that stands for a hidden one. Raises: RecipeError if there is none."""
        return self._special("mask token", "mask_token", self.tokenizer.mask_token_id)

    def _special(self, what: str, setting: str, found: object) -> int:
        if isinstance(found, int):
            return found
        raise RecipeError(
            f"The tokenizer has no {what}, which the objective needs.",
            f"Set {setting} in the model's tokenizer_config.json, or choose a model that has one.",
            field="objective.kind",
        )

    @cached_property
    def special_ids(self) -> IntArray:
        """The tokens that are no text."""
        return np.array(sorted(self.tokenizer.all_special_ids), dtype=np.int64)

    def is_text(self, tokens_T: IntArray) -> NDArray[np.bool_]:
        """Which tokens are text."""
        return ~np.isin(tokens_T, self.special_ids)

    @cached_property
    def sentinels(self) -> IntArray:
        """T5's sentinels, <extra_id_0> first. Raises: RecipeError if there are none."""
        found = {
            int(match[1]): index
            for token, index in self.tokenizer.get_vocab().items()
            if (match := _SENTINEL.fullmatch(token))
        }
        if not found:
            raise RecipeError(
                "The tokenizer has no sentinels (<extra_id_0>, <extra_id_1>, …), which stand for what is cut out of a text.",
                "Choose a T5, or add them to the model with model.add_tokens: about 30 for each 512 tokens of text.",
                field="objective.kind",
            )
        return np.array([found[number] for number in sorted(found)], dtype=np.int64)

    def id_of(self, token: str, field: str) -> int:
        """The id of a token by its spelling. Raises: RecipeError, at the field, if there is no such token."""
        index = self.tokenizer.get_vocab().get(token)
        if index is None:
            raise RecipeError(f"The tokenizer has no token {token!r}.", _ADD, field=field)
        return int(index)

    def encode(self, text: str) -> list[int]:
        """The text's tokens, with none around them."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def units(self, tokens_T: IntArray) -> list[str | int]:
        """A text's characters, and each special token in it as one, by its id."""
        is_text_T = self.is_text(tokens_T)
        units: list[str | int] = []
        for run_R in np.split(tokens_T, np.flatnonzero(is_text_T[1:] != is_text_T[:-1]) + 1):
            if len(run_R) and self.is_text(run_R[:1])[0]:
                units += str(self.tokenizer.decode(run_R.tolist(), clean_up_tokenization_spaces=False))
            else:
                units += run_R.tolist()
        return units

    def tokens_of(self, units: Sequence[str | int]) -> IntArray:
        """The tokens of a stretch of `units`, encoded by itself."""
        ids: list[int] = []
        for _, group in groupby(units, key=lambda unit: isinstance(unit, str)):
            run = list(group)
            ids += self.encode("".join(map(str, run))) if isinstance(run[0], str) else map(int, run)
        return np.array(ids, dtype=np.int64)

    def first_of(self, spellings: Sequence[str]) -> str | None:
        """The first of these tokens that there is."""
        known = self.tokenizer.get_vocab()
        return next((token for token in spellings if token in known), None)

    @cached_property
    def begins_word_V(self) -> NDArray[np.bool_]:
        """Which tokens begin a word wherever they stand: by the mark that the vocabulary has for it."""
        tokens = [str(token) for token in self.tokenizer.convert_ids_to_tokens(list(range(self.size)))]
        if any(token.startswith("##") for token in tokens):  # WordPiece marks what goes on
            return np.array([not token.startswith("##") for token in tokens])
        marks = tuple(mark for mark in ("\u0120", "\u2581") if any(token.startswith(mark) for token in tokens))
        blank = ("\u010a", "\u0109", "\n", "\t")  # a line break begins what follows, as a byte and as itself
        return np.array([not marks or token.startswith((*marks, *blank)) for token in tokens])

    def words(self, tokens_T: IntArray) -> IntArray:
        """The number of the word that each token belongs to, shape (T,)."""
        return np.cumsum(self.begins_word_V[tokens_T])

    @cached_property
    def full_stops(self) -> IntArray:
        """The tokens that end a sentence: those that are written as a full stop."""
        vocabulary = self.tokenizer.get_vocab().items()
        return np.array(
            sorted(index for token, index in vocabulary if token.strip("\u0120\u2581") == "."), dtype=np.int64
        )
