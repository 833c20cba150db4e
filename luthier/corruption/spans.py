"""Span corruption: spans of a text are cut out, and the model writes them.

Raffel et al. 2019 (T5), https://arxiv.org/abs/1910.10683, by the exact algorithm of its program. Of L tokens
n = round(density · L) are noise, but at least 1 and at most L − 1, in s = round(n / mean_length) spans, at least 1; round
takes halves to the even number. The n noise tokens and the L − n kept ones are each cut into s parts by a composition of
which each is as likely as the others, and the parts alternate: kept, noise, kept, noise … So a text begins with a kept
token and ends with a noise one, and a text with one span has it at its end, unless the mask is rolled.

In the inputs each noise span, in the targets each kept span becomes one sentinel, in the sentinels' order:

    text       t₁ t₂ [t₃ t₄] t₅ [t₆]
    inputs     t₁ t₂ ⟨0⟩ t₅ ⟨1⟩ end
    targets    ⟨0⟩ t₃ t₄ ⟨1⟩ t₆ end

so |inputs| + |targets| = L + 2s + 2 with the ends. The targets have no closing sentinel, which the paper's figures show
and its program does not write.

Shapes: L tokens of a text.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from luthier.corruption.keyed import below, distinct
from luthier.errors import DataError, RecipeError
from luthier.types import IntArray

# ── how much is noise ───────────────────────────────────────────────────────────────────────────────────────────────


def num_noise(length: int, density: float, mean_length: float) -> tuple[int, int]:
    """Noise tokens and noise spans in a text of so many tokens, 2 or more.

    Beyond the published rule there are never more spans than noise tokens or kept ones, which T5's program would fail on.
    """
    noise = min(max(round(length * density), 1), length - 1)
    spans = max(round(noise / mean_length), 1)
    return noise, min(spans, noise, length - noise)


def num_sentinels_needed(length: int, density: float, mean_length: float, *, roll: bool = False) -> int:
    """The most sentinels that a text of so many tokens takes; a rolled mask may cut one span in two."""
    return num_noise(length, density, mean_length)[1] + roll


def raw_length_for(inputs_length: int, density: float = 0.15, mean_length: float = 3.0) -> tuple[int, int]:
    """The longest text whose inputs have so many tokens at most, their end among them, and the length of its targets.

    568 and 114 for 512 at the defaults. At density 0.5 a text is one token shorter where the targets would else be longer
    than the inputs, as in T5's program. A rolled mask may make either side one token longer.
    Raises: RecipeError for inputs shorter than any text gives.
    """
    if inputs_length < 3:
        raise RecipeError(
            f"Inputs of span corruption have 3 tokens or more (one kept, one sentinel, the end), not {inputs_length}.",
            "Allow longer inputs.",
        )

    def lengths(raw: int) -> tuple[int, int]:
        noise, spans = num_noise(raw, density, mean_length)
        return raw - noise + spans + 1, noise + spans + 1

    raw = max(2, inputs_length - 1)  # inputs are never longer than the text by more than one
    while lengths(raw + 1)[0] <= inputs_length:
        raw += 1
    targets_length = lengths(raw)[1]
    if density == 0.5 and targets_length > lengths(raw)[0]:
        raw, targets_length = raw - 1, targets_length - 1
    return raw, targets_length


# ── which tokens are noise ──────────────────────────────────────────────────────────────────────────────────────────


def noise_mask(
    length: int, draw: np.random.Generator, *, density: float = 0.15, mean_length: float = 3.0, roll: bool = False
) -> NDArray[np.bool_]:
    """True at the noise tokens of a text of so many tokens, 2 or more, shape (L,).

    roll: turn the mask around by a random number of places, so that it may begin and end anywhere.
    """
    noise, spans = num_noise(length, density, mean_length)
    noise_ends = _part_ends(noise, spans, draw)
    kept_ends = _part_ends(length - noise, spans, draw)
    turns = np.zeros(length + 1, dtype=np.bool_)
    turns[kept_ends + noise_ends] = True  # where a noise span ends
    kept_ends[1:] += noise_ends[:-1]
    turns[kept_ends] = True  # where one begins
    mask_L = np.logical_xor.accumulate(turns[:-1])
    return np.roll(mask_L, below(length, 1, draw)[0]) if roll else mask_L


def iid_noise_mask(length: int, draw: np.random.Generator, *, density: float = 0.15) -> NDArray[np.bool_]:
    """True at each token with probability `density`, independently, perhaps at none, shape (L,)."""
    return draw.random(length) < density


def _part_ends(total: int, parts: int, draw: np.random.Generator) -> IntArray:
    """Where parts of 1 or more end, one after another, that come to `total`; each way to cut it is as likely as the others."""
    ends = np.empty(parts, dtype=np.int64)
    ends[:-1] = distinct(total - 1, parts - 1, draw) + 1
    ends[-1] = total
    return ends


# ── the two sides ───────────────────────────────────────────────────────────────────────────────────────────────────


def corrupt_spans(
    tokens_L: IntArray,
    draw: np.random.Generator,
    *,
    sentinels: IntArray,
    eos_id: int | None,
    density: float = 0.15,
    mean_length: float = 3.0,
    roll: bool = False,
) -> tuple[IntArray, IntArray]:
    """Inputs and targets of a text by T5's random spans.

    sentinels: their ids in order of use; T5's descend from the vocabulary's last.
    eos_id: what both sides end with; None: with nothing.
    Raises: DataError for a text of fewer than two tokens or with a sentinel in it; RecipeError for too few sentinels.
    """
    _check_length(tokens_L)
    needed = num_sentinels_needed(len(tokens_L), density, mean_length, roll=roll)
    if needed > len(sentinels):
        raise RecipeError(
            f"To cut {density:.0%} out of {len(tokens_L)} tokens in spans of {mean_length:g} on average takes {needed} "
            f"sentinels, but the vocabulary has {len(sentinels)}.",
            "Raise the mean length of spans, lower the noise density or the length of texts, or add sentinels to the "
            "tokenizer.",
        )
    mask_L = noise_mask(len(tokens_L), draw, density=density, mean_length=mean_length, roll=roll)
    return cut_out(tokens_L, mask_L, sentinels=sentinels, eos_id=eos_id)


def corrupt_iid(
    tokens_L: IntArray, draw: np.random.Generator, *, sentinels: IntArray, eos_id: int | None, density: float = 0.15
) -> tuple[IntArray, IntArray]:
    """Inputs and targets with each token noise by a draw of its own; neighbours that are noise share a sentinel.

    Raises: DataError for a text of fewer than two tokens or with a sentinel in it; RecipeError for too few sentinels.
    """
    _check_length(tokens_L)
    mask_L = iid_noise_mask(len(tokens_L), draw, density=density)
    return cut_out(tokens_L, mask_L, sentinels=sentinels, eos_id=eos_id)


def cut_out(
    tokens_L: IntArray, noise_L: NDArray[np.bool_], *, sentinels: IntArray, eos_id: int | None
) -> tuple[IntArray, IntArray]:
    """Inputs and targets for a given mask: each run of noise, each run of kept tokens one sentinel on the other side.

    Raises: DataError for a text with a sentinel in it; RecipeError for too few sentinels.
    """
    _check_free_of(tokens_L, sentinels)
    kept_L = ~noise_L
    noise_starts, kept_starts = _starts(noise_L), _starts(kept_L)
    needed = max(len(noise_starts), len(kept_starts))
    if needed > len(sentinels):
        raise RecipeError(
            f"A text of {len(tokens_L)} tokens is cut into {needed} spans, but the vocabulary has {len(sentinels)} sentinels.",
            "Lower the noise density or the length of texts, or add sentinels to the tokenizer.",
        )
    return (
        _collapsed(tokens_L, kept_L, noise_starts, sentinels, eos_id),
        _collapsed(tokens_L, noise_L, kept_starts, sentinels, eos_id),
    )


def _starts(inside_L: NDArray[np.bool_]) -> IntArray:
    """Where runs of True begin."""
    begins_L = inside_L.copy()
    begins_L[1:] &= ~inside_L[:-1]
    return np.flatnonzero(begins_L)


def _collapsed(
    tokens_L: IntArray, stays_L: NDArray[np.bool_], starts: IntArray, sentinels: IntArray, eos_id: int | None
) -> IntArray:
    """The tokens that stay, with one sentinel for each run of others, whose beginnings are given."""
    side_L = tokens_L.copy()
    side_L[starts] = sentinels[: len(starts)]
    stays_L = stays_L.copy()
    stays_L[starts] = True
    side = side_L[stays_L]
    return side if eos_id is None else np.concatenate([side, np.array([eos_id])])


def _check_length(tokens_L: IntArray) -> None:
    if len(tokens_L) < 2:
        raise DataError(
            f"A text of {len(tokens_L)} tokens cannot be corrupted: one must stay and one be cut out.",
            "Leave out texts of fewer than two tokens.",
        )


def _check_free_of(tokens_L: IntArray, sentinels: IntArray) -> None:
    if len(sentinels) == 0 or len(tokens_L) == 0:
        return
    (near,) = np.nonzero((tokens_L >= sentinels.min()) & (tokens_L <= sentinels.max()))
    if len(near) == 0:  # the usual case, in a fraction of what `isin` takes
        return
    found = near[np.isin(tokens_L[near], sentinels)]
    if len(found):
        raise DataError(
            f"The text has a sentinel of its own (id {tokens_L[found[0]]}, at token {found[0]}), so that it could not be told "
            "from those that stand for spans.",
            "Remove the sentinel's text from the row.",
        )


# ── back again ──────────────────────────────────────────────────────────────────────────────────────────────────────


def restore(inputs: IntArray, targets: IntArray, sentinels: IntArray, eos_id: int | None = None) -> IntArray:
    """The text that these two sides came from.

    Raises: DataError for sides whose sentinels do not fit each other.
    """
    kept, noise = (_pieces(_without_end(side, eos_id), sentinels) for side in (inputs, targets))
    # a text that begins with a kept token has targets that begin with a sentinel, and the other way round
    first, second = (noise, kept) if len(noise[0]) == 0 else (kept, noise)
    if not 0 <= len(first) - len(second) <= 1:
        raise DataError(
            f"The inputs hold {len(kept) - 1} sentinels and the targets {len(noise) - 1}, which come from no one text.",
            "Give the two sides of one text, with the sentinels that it was corrupted with.",
        )
    text = [piece for pair in zip(first, [*second, second[0][:0]], strict=False) for piece in pair]
    return np.concatenate(text)


def _without_end(side: IntArray, eos_id: int | None) -> IntArray:
    if eos_id is None:
        return side
    if len(side) == 0 or side[-1] != eos_id:
        raise DataError(f"A side does not end with the token {eos_id}.", "Give both sides whole.")
    return side[:-1]


def _pieces(side: IntArray, sentinels: IntArray) -> list[IntArray]:
    """What stands before the first sentinel, and after each."""
    (places,) = np.nonzero(np.isin(side, sentinels))
    if not np.array_equal(side[places], sentinels[: len(places)]):
        raise DataError("The sentinels of a side are not in their order.", "Give the sentinels in order of use.")
    first, *others = np.split(side, places)
    return [first, *(piece[1:] for piece in others)]
