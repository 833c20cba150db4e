"""A Unigram vocabulary with byte fallback: Kudo 2018, https://arxiv.org/abs/1804.10959.

Which pieces there are is found by the trainer of `tokenizers`. It works in parallel and adds up in no fixed order, so that the
same text gives other last digits each time. The pieces' probabilities are therefore found once more here, by counting: first
how often each stands in the text at all, then how often it does in the likeliest segmentation under the last counts.
A character that no piece has is spelt in bytes: <0x00> … <0xFF>.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from operator import length_hint

import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))

_BLANK = "▁"
_UNKNOWN = "<unk>"
_ROUNDS = 4
_NEVER = -1e4
"""The log-probability of the bytes: the text `<0x0A>` itself is never taken for one."""
_ALPHABET = [chr(code) for code in range(0x21, 0x7F)]
"""Characters that always are pieces, so that no text is spelt as the name of a byte."""

Words = Counter[str]


def splitting() -> pre_tokenizers.PreTokenizer:
    """What cuts text into words, each with the blank before it; line breaks and digits stand alone."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(r"\n+"), "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Metaspace(replacement=_BLANK, prepend_scheme="never"),
        ]
    )


def joining() -> decoders.Decoder:
    """What makes text of pieces again."""
    return decoders.Sequence([decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse()])


def words_of(texts: Iterable[str]) -> Words:
    """How often each word stands in the texts."""
    split = splitting()
    return Counter(word for text in texts for word, _ in split.pre_tokenize_str(text))


def characters_of(words: Words) -> set[str]:
    """The characters that are pieces in any case."""
    return {*_ALPHABET, *(character for word in words for character in word)}


def trained_pieces(texts: Iterable[str], num_pieces: int, *, shows_progress: bool) -> list[str]:
    """The pieces, sorted; fewer than asked for where the texts have no more."""
    trainer = trainers.UnigramTrainer(
        vocab_size=num_pieces + 1,  # with the unknown one
        special_tokens=[_UNKNOWN],
        unk_token=_UNKNOWN,
        initial_alphabet=_ALPHABET,
        show_progress=shows_progress,
    )
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = splitting()
    trained.train_from_iterator(texts, trainer, length=length_hint(texts))
    return sorted(set(trained.get_vocab()) - {_UNKNOWN})


def unigram(special: Sequence[str], unknown: str, pieces: Sequence[str], words: Words) -> Tokenizer:
    """A tokenizer of these special tokens (the unknown one among them), the bytes, and the pieces, the frequent ones first."""
    counts = _everywhere(pieces, words)
    for _ in range(_ROUNDS):
        counts = _likeliest(_scored(counts, pieces), words)
    found = sorted(_scored(counts, pieces), key=lambda entry: (-entry[1], entry[0]))
    entries = [*((token, 0.0) for token in special), *((byte, _NEVER) for byte in BYTES), *found]
    return Tokenizer(models.Unigram(entries, unk_id=list(special).index(unknown), byte_fallback=True))


def _scored(counts: Words, pieces: Sequence[str]) -> list[tuple[str, float]]:
    """The pieces' log-probabilities; one that is not there has half a count."""
    total = sum(counts.values())
    return [(piece, math.log(max(counts[piece], 0.5) / total)) for piece in pieces]


def _everywhere(pieces: Sequence[str], words: Words) -> Words:
    known, longest = set(pieces), max(map(len, pieces))
    counts = Words()
    for word, number in words.items():
        for start in range(len(word)):
            for end in range(start + 1, min(len(word), start + longest) + 1):
                if word[start:end] in known:
                    counts[word[start:end]] += number
    return counts


def _likeliest(scored: list[tuple[str, float]], words: Words) -> Words:
    tokenizer = Tokenizer(models.Unigram([(_UNKNOWN, 0.0), *scored], unk_id=0, byte_fallback=False))
    counts = Words()
    for encoding, number in zip(tokenizer.encode_batch(list(words)), words.values(), strict=True):
        for piece in encoding.tokens:
            counts[piece] += number
    return counts
