"""Which states of the frozen base a method reads, and these states of a batch.

A state bears the number of the layer that gives it, from 1 on; 0 is what enters the first. In an encoder-decoder each stack
is counted on its own, and an encoder's last state is the one in front of its final norm, which may train.
Shapes: B rows, T tokens of a row, S tokens of a source, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.models.anatomy import Anatomy


@dataclass(frozen=True)
class Taps:
    """Numbers of states. own: of the only stack, or of a decoder. source: of the encoder that the decoder reads."""

    own: tuple[int, ...] = ()
    source: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """How many states these are."""
        return len(self.own) + len(self.source)


@dataclass(frozen=True)
class Tapped:
    """States of a batch by their numbers. own: of its own tokens, each (B, T, D). source: of its sources, each (B, S, D)."""

    own: dict[int, Tensor]
    source: dict[int, Tensor]

    def to(self, dtype: torch.dtype) -> Tapped:
        """The same in another number format."""
        own, source = ({key: x.to(dtype) for key, x in states.items()} for states in (self.own, self.source))
        return Tapped(own, source)


def taps_below(anatomy: Anatomy, lowest_layer: int | None) -> Taps:
    """What the layers below one give to the rest of the model; no taps where there is nothing worth keeping.

    lowest_layer: its index; None if even the embedding trains. A decoder that computes some layer reads its encoder, too.
    """
    if lowest_layer is None:
        return Taps()
    num_encoding = len(anatomy.encoding)
    if lowest_layer < num_encoding:  # what is above changes with it, and so does the whole decoder
        return Taps(source=(lowest_layer,) if lowest_layer else ())
    own = lowest_layer - num_encoding
    reads_encoder = num_encoding > 0 and own < len(anatomy.answering)
    return Taps((own,) if own else (), (num_encoding,) if reads_encoder else ())


def highest(states: Mapping[int, Tensor]) -> tuple[int, Tensor] | None:
    """The highest of a stack's states and its number, which is that of the layer that it enters; None if there is none."""
    number = max(states, default=None)
    return None if number is None else (number, states[number])
