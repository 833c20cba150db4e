"""UL2's mixture of denoisers: each text is corrupted in one of seven ways, and a first token says of which kind.

Tay et al. 2022 (UL2), https://arxiv.org/abs/2205.05131. R is span corruption as in T5, X cuts out much or long spans, S is
prefix language modelling with the last quarter of a text as the targets, without sentinels:

    R   density 0.15, mean length 3 and 8           first token [NLU]
    X   density 0.5, mean length 3, 8 and 64;       first token [NLG]
        density 0.15, mean length 64
    S   the last 0.25                               first token [S2S]

All seven are as likely unless weights say otherwise. In the paper texts are cut to lengths of each denoiser's own, so that the
inputs are of one length whichever is drawn (`raw_length` says which); the objective cuts all to one length. The most
sentinels go to density 0.5 with mean length 3: 128 at inputs of 512, more than the 100 of T5's vocabulary.

Shapes: L tokens of a text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from luthier.corruption.keyed import one_of
from luthier.corruption.prefix import cut_at, split_point_at
from luthier.corruption.spans import corrupt_spans, num_sentinels_needed, raw_length_for
from luthier.errors import RecipeError
from luthier.types import IntArray

Mode = Literal["R", "X", "S"]

MODE_TOKENS: Mapping[Mode, str] = {"R": "[NLU]", "X": "[NLG]", "S": "[S2S]"}
"""What the inputs begin with in the paper."""


@dataclass(frozen=True)
class Denoiser:
    """One way to corrupt a text: the share of noise, and the mean length of its spans; None: one, at the end."""

    mode: Mode
    density: float
    mean_length: float | None

    def num_sentinels(self, length: int) -> int:
        """The sentinels that a text of so many tokens takes."""
        return 0 if self.mean_length is None else num_sentinels_needed(length, self.density, self.mean_length)

    def raw_length(self, inputs_length: int) -> tuple[int, int]:
        """The longest text whose inputs have so many tokens at most, their end among them, and its targets' length.

        The mode token is not among them: ask with one fewer where inputs begin with it.
        Raises: RecipeError for inputs shorter than any text gives.
        """
        if self.mean_length is not None:
            return raw_length_for(inputs_length, self.density, self.mean_length)
        if inputs_length < 2:
            raise RecipeError(
                f"Inputs have 2 tokens or more (one kept, the end), not {inputs_length}.", "Allow longer inputs."
            )
        raw = 2
        while split_point_at(raw + 1, self.density) + 1 <= inputs_length:
            raw += 1
        return raw, raw - split_point_at(raw, self.density) + 1


DENOISERS = (
    Denoiser("R", 0.15, 3.0),
    Denoiser("R", 0.15, 8.0),
    Denoiser("X", 0.5, 3.0),
    Denoiser("X", 0.5, 8.0),
    Denoiser("X", 0.15, 64.0),
    Denoiser("X", 0.5, 64.0),
    Denoiser("S", 0.25, None),
)
"""The paper's seven."""


def choose_denoiser(
    draw: np.random.Generator, denoisers: Sequence[Denoiser] = DENOISERS, weights: Sequence[float] | None = None
) -> Denoiser:
    """One of the denoisers, as likely as its weight says; without weights each as likely as the others."""
    weights = [1.0] * len(denoisers) if weights is None else weights
    assert len(weights) == len(denoisers), "a weight for each denoiser"
    return denoisers[one_of(weights, draw)]


def corrupt_as(
    tokens_L: IntArray,
    denoiser: Denoiser,
    draw: np.random.Generator,
    *,
    sentinels: IntArray,
    eos_id: int | None,
    mode_ids: Mapping[Mode, int] | None,
) -> tuple[IntArray, IntArray]:
    """Inputs and targets of a text by that denoiser; the inputs begin with its mode's token, if there are any.

    Raises: DataError and RecipeError as `corrupt_spans` does.
    """
    if denoiser.mean_length is None:
        at = split_point_at(len(tokens_L), denoiser.density)
        inputs, targets = cut_at(tokens_L, at, eos_id=eos_id)
    else:
        inputs, targets = corrupt_spans(
            tokens_L,
            draw,
            sentinels=sentinels,
            eos_id=eos_id,
            density=denoiser.density,
            mean_length=denoiser.mean_length,
        )
    if mode_ids is None:
        return inputs, targets
    return np.concatenate([np.array([mode_ids[denoiser.mode]]), inputs]), targets
