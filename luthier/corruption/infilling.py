"""BART's noise: sentences change places and spans of words are hidden, and the model writes the text as it was.

Lewis et al. 2019 (BART), https://arxiv.org/abs/1910.13461; the steps and their order are those of fairseq. The paper masks
30 % with lengths from Poisson(3); the command for the released model has mask 0.3, poisson 3.5, random 0.1, permute 1, and
so have the defaults here. mBART (https://arxiv.org/abs/2001.08210) masks 0.35.

1. Sentences: ⌈permute · sentences⌉ of them change places among themselves. A full stop that follows another token ends a
   sentence; the text's last token ends one too, unless a full stop stands before it: what remains then stays in its place.
2. Spans: lengths are drawn from Poisson(poisson) until they come to a budget of ⌈mask · words⌉, the last one cut to fit. Each
   length above 0 begins at a word of its own, any as likely, and covers so many words or what is left of the text. Spans
   may overlap, so that less than the budget may be hidden. A span becomes one mask token ("one"; where another span covers
   its first word, none), nothing ("none"), or as many mask tokens as it had ("each"). With probability `random` a span has
   random tokens instead. Each length 0 becomes a token between others.
3. Insertions: ⌈insert · tokens⌉ tokens between others. Of inserted tokens ⌈random · count⌉ are random, the others masks.
4. Rotation: with probability `rotate` the text begins at one of its tokens, each as likely, and what stood before it comes
   last (fairseq draws one place more, so that the unrotated text is twice as likely).

The tokens that a text begins and ends with (beginning and end marks) stay out of all of it; as in fairseq they count in
step 3. Poisson numbers come from its probabilities down to 10⁻⁷; fairseq ends there on the rising side too, which would
make every length 0 for a mean above 16.

Shapes: T tokens of a text, M tokens between its marks, S spans.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from luthier.corruption.keyed import below, shuffled
from luthier.corruption.masking import random_tokens
from luthier.types import IntArray

Replacement = Literal["one", "none", "each"]

LONGEST_SPAN = 127
"""Poisson numbers above it are not drawn."""


def corrupt_text(
    tokens_T: IntArray,
    draw: np.random.Generator,
    *,
    mask_id: int,
    random_ids: int | IntArray,
    full_stop_ids: IntArray,
    words_T: IntArray | None = None,
    mask: float = 0.3,
    poisson: float | None = 3.5,
    random: float = 0.1,
    replace: Replacement = "one",
    permute: float = 1.0,
    insert: float = 0.0,
    rotate: float = 0.0,
    num_before: int = 1,
    num_after: int = 1,
) -> IntArray:
    """The text with noise; the targets are the text itself.

    random_ids: as `mask_tokens` takes it.
    full_stop_ids: the tokens that end a sentence.
    words_T: the index of each token's word, a new word wherever it changes; None: each token is a word.
    poisson: the mean length of a span in words; None: each is one word.
    num_before, num_after: how many tokens at either end stay out of it.
    """
    end = max(len(tokens_T) - num_after, num_before)
    before, inner_M, after = np.split(tokens_T, [num_before, end])
    begins_M = word_starts(inner_M, None if words_T is None else words_T[num_before:end])
    if permute > 0 and len(inner_M):
        is_full_stop_M = (inner_M[:, None] == full_stop_ids).any(axis=1)  # for a few ids faster than isin
        order_M = permuted_sentences(is_full_stop_M, permute, draw)
        inner_M, begins_M = inner_M[order_M], begins_M[order_M]
    if mask > 0:
        lengths_S = span_lengths(_ceil(mask * np.count_nonzero(begins_M)), poisson, draw)
        num_inserted = int(np.count_nonzero(lengths_S == 0))
        inner_M = infilled(inner_M, begins_M, lengths_S[lengths_S > 0], draw, mask_id, random_ids, random, replace)
        inner_M = with_insertions(inner_M, num_inserted, draw, mask_id, random_ids, random)
    if insert > 0:
        count = _ceil(insert * (len(inner_M) + len(before) + len(after)))
        inner_M = with_insertions(inner_M, count, draw, mask_id, random_ids, random)
    if rotate > 0 and draw.random() < rotate and len(inner_M):
        inner_M = np.roll(inner_M, -below(len(inner_M), 1, draw)[0])
    return np.concatenate([before, inner_M, after])


def word_starts(inner_M: IntArray, words_M: IntArray | None) -> NDArray[np.bool_]:
    """True where a word begins."""
    begins_M = np.ones(len(inner_M), dtype=np.bool_)
    if words_M is not None:
        begins_M[1:] = words_M[1:] != words_M[:-1]
    return begins_M


def permuted_sentences(is_full_stop_M: NDArray[np.bool_], share: float, draw: np.random.Generator) -> IntArray:
    """The order that the tokens are in once that share of the sentences has changed places, shape (M,)."""
    ends_sentence_M = is_full_stop_M.copy()
    ends_sentence_M[-1] = True
    ends_sentence_M[1:] &= ~is_full_stop_M[:-1]
    stops = np.flatnonzero(ends_sentence_M) + 1
    starts = np.concatenate([np.zeros(1, dtype=np.int64), stops[:-1]])
    moved = shuffled(len(stops), draw)[: _ceil(share * len(stops))]
    sentences = np.arange(len(stops))
    sentences[moved] = moved[shuffled(len(moved), draw)]
    lengths = (stops - starts)[sentences]
    order_M = np.arange(len(is_full_stop_M))
    order_M[: stops[-1]] += np.repeat(starts[sentences] - (np.cumsum(lengths) - lengths), lengths)
    return order_M


def span_lengths(budget: int, poisson: float | None, draw: np.random.Generator) -> IntArray:
    """Lengths of spans in words, zeros among them, that come to the budget exactly, shape (S,)."""
    if poisson is None:
        return np.ones(budget, dtype=np.int64)
    if budget == 0:
        return np.zeros(0, dtype=np.int64)
    cumulative = poisson_cumulative(poisson)
    drawn: list[IntArray] = []
    missing = budget
    while missing > 0:
        drawn.append(np.searchsorted(cumulative, draw.random(budget), side="right"))
        missing -= int(drawn[-1].sum())
    lengths = np.concatenate(drawn)
    total = np.cumsum(lengths)
    last = int(np.searchsorted(total, budget))
    lengths[last] -= total[last] - budget
    return lengths[: last + 1]


def poisson_cumulative(mean: float) -> NDArray[np.float64]:
    """Entry k: the probability of k or less, for a Poisson number that is drawn again where it is too rare or too large."""
    assert mean > 0, "a mean length of 0 comes to no budget"
    probability, all_of_them = math.exp(-mean), []
    for k in range(LONGEST_SPAN + 1):
        all_of_them.append(probability)
        if k > mean and probability < 1e-7:
            break
        probability *= mean / (k + 1)
    cumulative: NDArray[np.float64] = np.cumsum(all_of_them)
    cumulative /= cumulative[-1]
    return cumulative


def infilled(
    inner_M: IntArray,
    begins_M: NDArray[np.bool_],
    lengths_S: IntArray,
    draw: np.random.Generator,
    mask_id: int,
    random_ids: int | IntArray,
    random: float,
    replace: Replacement,
) -> IntArray:
    """The text with spans of so many words hidden, each of which begins at a random word of its own."""
    words = np.flatnonzero(begins_M)
    word_S = shuffled(len(words), draw)[: len(lengths_S)]
    is_random_S = draw.random(len(lengths_S)) < random
    stops = np.concatenate([words, np.array([len(inner_M)])])
    start_S, stop_S = words[word_S], stops[np.minimum(word_S + lengths_S, len(words))]
    if replace == "each":
        return _masked_each(inner_M, start_S, stop_S, is_random_S, draw, mask_id, random_ids)
    inner_M = inner_M.copy()
    inner_M[start_S] = mask_id
    inner_M[start_S[is_random_S]] = random_tokens(random_ids, int(np.count_nonzero(is_random_S)), draw)
    return inner_M[~_covered(len(inner_M), start_S + (replace == "one"), stop_S)]


def _covered(length: int, start_S: IntArray, stop_S: IntArray) -> NDArray[np.bool_]:
    """True at the places that lie in one of the spans."""
    opened = np.bincount(start_S, minlength=length + 1) - np.bincount(stop_S, minlength=length + 1)
    return np.cumsum(opened[:length]) > 0


def _masked_each(
    inner_M: IntArray,
    start_S: IntArray,
    stop_S: IntArray,
    is_random_S: NDArray[np.bool_],
    draw: np.random.Generator,
    mask_id: int,
    random_ids: int | IntArray,
) -> IntArray:
    """Every token of a span masked or random; one that several spans cover goes with the one that begins first."""
    by_start = np.argsort(start_S)
    start_S, stop_S, is_random_S = start_S[by_start], stop_S[by_start], is_random_S[by_start]
    reached_S = np.maximum.accumulate(stop_S)
    start_S[1:] = np.maximum(start_S[1:], reached_S[:-1])
    is_random = np.repeat(is_random_S, np.maximum(stop_S - start_S, 0))
    hidden = np.where(is_random, random_tokens(random_ids, len(is_random), draw), mask_id)
    inner_M = inner_M.copy()
    inner_M[_covered(len(inner_M), start_S, np.maximum(start_S, stop_S))] = hidden
    return inner_M


def with_insertions(
    inner_M: IntArray,
    count: int,
    draw: np.random.Generator,
    mask_id: int,
    random_ids: int | IntArray,
    random: float,
) -> IntArray:
    """The text with so many tokens more, at random places: the share `random` of them random, rounded up, else masks."""
    if count == 0:
        return inner_M
    places = shuffled(len(inner_M) + count, draw)[:count]
    num_random = _ceil(random * count)
    longer = np.empty(len(inner_M) + count, dtype=np.int64)
    is_text = np.ones(len(longer), dtype=np.bool_)
    is_text[places] = False
    longer[is_text] = inner_M
    longer[places] = mask_id
    longer[places[:num_random]] = random_tokens(random_ids, num_random, draw)
    return longer


def _ceil(share: float) -> int:
    """The next whole number; 0.1 · 30 is 3, not 4, whatever 0.1 is in binary."""
    return math.ceil(round(share, 6))
