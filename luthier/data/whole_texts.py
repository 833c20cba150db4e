"""Texts that a model reads as a whole, rather than learns to write: as its tokenizer writes them, special tokens and all.

    a text, or a pair, with a class or a score      one text; a pair that the tokenizer would only join is parted by a line break
    words with tags                                 one text of words; a word's tag is told at its first token
    a question with options                         one text for each option: the question and the option, as a pair
    texts that mean the same, and others            one text each
    plain text                                      one text, in pieces where it is too long

Shapes: T tokens, K tags.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from transformers import BatchEncoding, PreTrainedTokenizerBase

from luthier.data.split import text_key
from luthier.errors import DataError
from luthier.types import Choice, Labelled, PlainText, Pooled, Rendered, Scored, Similar, Tagged

Whole = Labelled | Scored | Tagged | Choice | Similar


@dataclass(frozen=True)
class WholeTexts:
    """Whole texts for one tokenizer. pooled: which token of a text the model's head reads."""

    tokenizer: PreTrainedTokenizerBase
    pooled: Pooled

    def render(self, record: Whole) -> Rendered:
        """The record's text or texts. Raises: DataError, without a place, for a text without tokens."""
        match record:
            case Labelled(text, pair, label):
                return replace(self.text(text, pair), label=label)
            case Scored(text, pair, score):
                return replace(self.text(text, pair), score=score)
            case Tagged(words, tags):
                return self.words(words, tags)
            case Choice(question, options, answer):
                return _side_by_side([self.text(question, option) for option in options], answer)
            case Similar(anchor, positive, negatives):
                return _side_by_side([self.text(text) for text in (anchor, positive, *negatives)], 1)

    def text(self, text: str, pair: str | None = None) -> Rendered:
        """A text, or a pair of texts."""
        if pair is not None and not self._parts_pairs:
            text, pair = f"{text}\n{pair}", None
        output = self.tokenizer(text, pair, return_token_type_ids=True, verbose=False)
        whose = output.sequence_ids(0)  # which text each token is of; None for special tokens
        if 0 not in whose or (pair is not None and 1 not in whose):
            raise DataError("The tokenizer makes no tokens of the text.", "Leave this row out.")
        return self._rendered(output, num_needed=1 + whose.index(0 if pair is None else 1))

    def words(self, words: Sequence[str], tags: Sequence[str]) -> Rendered:
        """Words with a space between them, of which each is tagged at its first token."""
        ends = np.cumsum([len(word) + 1 for word in words]) - 1
        output = self.tokenizer(" ".join(words), return_offsets_mapping=True, return_token_type_ids=True, verbose=False)
        at_K: list[int] = []
        token, whose = 0, output.sequence_ids(0)
        for word, end in zip(words, ends.tolist(), strict=True):
            start = end - len(word)
            while token < len(whose) and (whose[token] is None or output["offset_mapping"][token][1] <= start):
                token += 1
            if token == len(whose) or output["offset_mapping"][token][0] >= end or token in at_K[-1:]:
                raise DataError(
                    f"The tokenizer makes no token of its own of the word {word!r}, so its tag could not be told.",
                    "Remove the word and its tag, or leave this row out.",
                )
            at_K.append(token)
        return replace(self._rendered(output, num_needed=1), tags=tuple(tags), tag_K=np.array(at_K, dtype=np.int64))

    def pieces(self, text: str, longest: int) -> Iterator[tuple[PlainText, Rendered]]:
        """A text in pieces of at most so many tokens, those around it included; all near equal in length."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
        lead, trail = self._around
        cuts = even_cuts(len(ids), max(1, longest - len(lead) - len(trail)))
        whole = text_key(text) if len(cuts) > 1 else ""
        for start, end in cuts:
            tokens_T = np.array([*lead, *ids[start:end], *trail], dtype=np.int64)
            piece = PlainText(text[offsets[start][0] : offsets[end - 1][1]], part_of=whole)
            weight_T = np.zeros(len(tokens_T), dtype=np.float32)
            yield piece, Rendered(tokens_T, weight_T, num_closing=len(trail), num_needed=len(lead) + 1)

    def _rendered(self, output: BatchEncoding, num_needed: int) -> Rendered:
        ids, types_T = output["input_ids"], np.array(output["token_type_ids"], dtype=np.int64)
        whose = output.sequence_ids(0)
        return Rendered(
            np.array(ids, dtype=np.int64),
            np.zeros(len(ids), dtype=np.float32),
            types_T=types_T if types_T.any() else None,
            num_closing=next(index for index, text_of in enumerate(reversed(whose)) if text_of is not None),
            num_needed=num_needed,
            pooled=self.pooled,
        )

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before a text and after it."""
        output = self.tokenizer("a", verbose=False)
        is_text = [text_of is not None for text_of in output.sequence_ids(0)]
        ids = list(output["input_ids"])
        return ids[: is_text.index(True)], ids[len(ids) - is_text[::-1].index(True) :]

    @cached_property
    def _parts_pairs(self) -> bool:
        """Whether the tokenizer puts special tokens between the texts of a pair."""
        tokenizer = self.tokenizer
        return tokenizer.num_special_tokens_to_add(pair=True) > tokenizer.num_special_tokens_to_add(pair=False)


def even_cuts(length: int, most: int) -> list[tuple[int, int]]:
    """Where to cut a run of so many tokens into as few pieces of at most `most` as it takes, near equal; none of nothing."""
    count = -(-length // most)
    ends = [length * piece // count for piece in range(count + 1)]
    return list(pairwise(ends))


def _side_by_side(texts: Sequence[Rendered], chosen: int) -> Rendered:
    return replace(texts[0], beside=tuple(texts[1:]), chosen=chosen)
