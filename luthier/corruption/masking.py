"""Masked language modelling: some tokens are hidden, and the model says what stood there.

Devlin et al. 2018 (BERT), https://arxiv.org/abs/1810.04805. A share of the tokens is chosen (0.15); of the chosen ones 80 %
become the mask token, 10 % a random token and 10 % stay, each token by a draw of its own; the loss is taken at the chosen
ones alone. What must not be chosen (marks of the beginning and the end, padding) is not maskable.

Which tokens are chosen differs between the programs that published models came from:

- `bernoulli`: each token by itself with probability `rate`, as the collator of transformers does. The number varies, and a
  short text may have none chosen.
- `exact`: max(1, round(rate · length)) tokens, the length with its marks, no more than `most`, as BERT's own preparation
  did (with 20 as the most); round takes halves to the even number.
- `stochastic-count`: ⌊rate · maskable + u⌋ tokens with one uniform u, as fairseq did for RoBERTa (Liu et al. 2019,
  https://arxiv.org/abs/1907.11692), so that the mean number is exact. fairseq counts the marks too, and may choose them.
  A short text may have none chosen.

Whole words (`words_T`) are chosen all or not at all, and 80/10/10 is still drawn for each token, as in BERT. `bernoulli`
draws for each word (transformers does too, and then masks every chosen token: set mask_share to 1). `exact` goes through
the words in random order and passes over one that has more tokens than are still wanted (BERT), so it may end below its
number, and at none at all. `stochastic-count` counts words (fairseq, which draws 80/10/10 for each word).

Shapes: T tokens of a text, U units, that is words or single tokens.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from luthier.corruption.keyed import below, distinct, shuffled
from luthier.types import IntArray

Sampler = Literal["bernoulli", "exact", "stochastic-count"]


def mask_tokens(
    tokens_T: IntArray,
    maskable_T: NDArray[np.bool_],
    draw: np.random.Generator,
    *,
    mask_id: int,
    random_ids: int | IntArray,
    rate: float = 0.15,
    mask_share: float = 0.8,
    random_share: float = 0.1,
    sampler: Sampler = "bernoulli",
    most: int | None = None,
    words_T: IntArray | None = None,
    at_least_one: bool = False,
) -> tuple[IntArray, IntArray]:
    """The text with some tokens hidden, and the places of the chosen ones, ascending: what is learned there is the text's.

    random_ids: the ids that a random token is one of; a number V means 0 … V − 1, special ids among them, as in
    transformers and BERT.
    mask_share, random_share: of the chosen tokens; what remains stays as it is.
    most: the most tokens that `exact` chooses.
    words_T: the index of each token's word. Maskable tokens that stand next to each other with one index are a word.
    at_least_one: where none was chosen and something is maskable, choose one token (or word), each as likely.
    """
    chosen_C = choose(tokens_T, maskable_T, draw, rate, sampler, most, words_T)
    if at_least_one and len(chosen_C) == 0 and maskable_T.any():
        units_T, num_units = units_of(maskable_T, words_T)
        (chosen_C,) = np.nonzero(units_T == below(num_units, 1, draw))
    return hide(tokens_T, chosen_C, draw, mask_id, random_ids, mask_share, random_share), chosen_C


def hide(
    tokens_T: IntArray,
    chosen_C: IntArray,
    draw: np.random.Generator,
    mask_id: int,
    random_ids: int | IntArray,
    mask_share: float,
    random_share: float,
) -> IntArray:
    """The text with the chosen tokens masked, random or as they were."""
    u_C = draw.random(len(chosen_C))
    inputs_T = tokens_T.copy()
    inputs_T[chosen_C[u_C < mask_share]] = mask_id
    random = chosen_C[(u_C >= mask_share) & (u_C < mask_share + random_share)]
    inputs_T[random] = random_tokens(random_ids, len(random), draw)
    return inputs_T


def random_tokens(random_ids: int | IntArray, count: int, draw: np.random.Generator) -> IntArray:
    """So many tokens, each as likely as the others; `random_ids` as `mask_tokens` takes it."""
    if isinstance(random_ids, int):
        return below(random_ids, count, draw)
    return random_ids[below(len(random_ids), count, draw)]


def choose(
    tokens_T: IntArray,
    maskable_T: NDArray[np.bool_],
    draw: np.random.Generator,
    rate: float,
    sampler: Sampler,
    most: int | None,
    words_T: IntArray | None,
) -> IntArray:
    """The places of the tokens that a sampler chooses, ascending."""
    assert most is None or sampler == "exact", "only the exact sampler has a most"
    if words_T is None and sampler == "bernoulli":  # the usual case, without counting units
        return np.flatnonzero(maskable_T & (draw.random(len(tokens_T)) < rate))
    units_T, num_units = units_of(maskable_T, words_T)
    is_chosen_U = np.zeros(num_units + 1, dtype=np.bool_)  # the last: what is not maskable
    if sampler == "bernoulli":
        is_chosen_U[:-1] = draw.random(num_units) < rate
    elif sampler == "stochastic-count":
        count = min(int(rate * num_units + draw.random()), num_units)
        is_chosen_U[distinct(num_units, count, draw)] = True
    else:
        wanted = max(1, round(rate * len(tokens_T)))
        wanted = wanted if most is None else min(most, wanted)
        if words_T is None:
            is_chosen_U[distinct(num_units, min(wanted, num_units), draw)] = True
        else:
            is_chosen_U[_words_within(np.bincount(units_T[maskable_T], minlength=num_units), wanted, draw)] = True
    return np.flatnonzero(is_chosen_U[units_T])


def units_of(maskable_T: NDArray[np.bool_], words_T: IntArray | None) -> tuple[IntArray, int]:
    """The unit that each token belongs to, counted from 0, −1 where it is not maskable; and how many there are."""
    starts_T = maskable_T
    if words_T is not None:
        continues_T = (words_T[1:] == words_T[:-1]) & maskable_T[:-1]
        starts_T = maskable_T.copy()
        starts_T[1:] &= ~continues_T
    counted_T = np.cumsum(starts_T)
    return np.where(maskable_T, counted_T - 1, -1), int(counted_T[-1]) if len(counted_T) else 0


def _words_within(sizes_U: IntArray, wanted: int, draw: np.random.Generator) -> list[int]:
    """Words in random order, as many as have `wanted` tokens together, those passed over that would have more."""
    chosen: list[int] = []
    sizes = sizes_U.tolist()
    for word in shuffled(len(sizes), draw).tolist():
        if sizes[word] <= wanted:
            chosen.append(word)
            wanted -= sizes[word]
            if wanted == 0:
                break
    return chosen
