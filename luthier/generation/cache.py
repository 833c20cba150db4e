"""A key-value cache that grows in blocks, so that a new token's keys are written in place rather than copied with all.

Shapes: B rows, K key/value heads, L positions held, T tokens of a packed row, E head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from luthier.types import Segment

BLOCK = 64  # positions that a full buffer grows by


@dataclass(frozen=True)
class PackedKeys:
    """Keys and values of several prompts in one packed row, and for each prompt the segments that it is made of."""

    cache: DynamicCache
    segments_of: tuple[tuple[Segment, ...], ...]


def held_length(num_tokens: int) -> int:
    """The most positions that a buffer has that comes to hold so many tokens."""
    return num_tokens + BLOCK


def bytes_of(cache: Cache) -> int:
    """The memory of all keys and values, with the room behind them."""
    return sum([buffer.nbytes for buffer in _buffers_of(cache)])


def token_bytes_of(cache: Cache) -> int:
    """What one token of one row takes of that."""
    each = [buffer.nbytes / (buffer.shape[0] * buffer.shape[2]) for buffer in _buffers_of(cache)]
    return math.ceil(sum(each))


class GrowingCache(DynamicCache):
    """The keys and values of a batch of rows, padded on the left; layers appear as the model first writes to them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_class_to_replicate = _GrowingLayer

    def fill(self, packed: Sequence[PackedKeys]) -> None:
        """Take the prompts of packed rows, a row of the batch each. The cache must be empty."""
        for layers in zip(*(keys.cache.layers for keys in packed), strict=True):
            layer = _GrowingLayer()  # type: ignore[no-untyped-call]
            layer.fill(layers, [keys.segments_of for keys in packed])
            self.layers.append(layer)


class _GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's keys and values; `keys` and `values` are views of buffers that have room behind them."""

    buffers: tuple[Tensor, ...]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take number format, device and shapes from the first keys and values."""
        self._hold((_with_room(key_states[:, :, :0]), _with_room(value_states[:, :, :0])), 0)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values (B, K, T, E); returns all that are held, (B, K, L, E)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        stop = start + key_states.shape[2]
        buffers = self.buffers
        if stop > buffers[0].shape[2]:
            buffers = tuple(_with_room(buffer[:, :, :start], stop) for buffer in buffers)
        for buffer, new in zip(buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:stop] = new
        return self._hold(buffers, stop)

    def fill(self, packed: Sequence[DynamicLayer], segments_of: Sequence[Sequence[Sequence[Segment]]]) -> None:
        """Copy each prompt's pieces to the right end of its row; what is left of it is zero, never seen, and finite."""
        length = max(sum(s.length for s in row) for rows in segments_of for row in rows)
        num_rows = sum(len(rows) for rows in segments_of)
        first, _ = _states(packed[0])
        buffers = tuple(first.new_zeros(num_rows, first.shape[1], length + BLOCK, first.shape[3]) for _ in range(2))
        row = 0
        for layer, rows in zip(packed, segments_of, strict=True):
            for segments in rows:
                at = length - sum(segment.length for segment in segments)
                for segment in segments:
                    for buffer, states in zip(buffers, _states(layer), strict=True):
                        buffer[row, :, at : at + segment.length] = states[0, :, segment.start : segment.end]
                    at += segment.length
                row += 1
        self._hold(buffers, length)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows only."""
        self._hold(tuple(buffer[indices] for buffer in self.buffers), self.get_seq_length())

    def _hold(self, buffers: tuple[Tensor, ...], length: int) -> tuple[Tensor, Tensor]:
        """Keep keys and values of so many positions in these buffers; returns them."""
        keys, values = (buffer[:, :, :length] for buffer in buffers)
        self.buffers = buffers
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        return keys, values


def _buffers_of(cache: Cache) -> list[Tensor]:
    """What the layers hold keys and values in."""
    found: list[Tensor] = []
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer), "generation keeps plain keys and values"
        found += layer.buffers if isinstance(layer, _GrowingLayer) else _states(layer)
    return found


def _states(layer: DynamicLayer) -> tuple[Tensor, Tensor]:
    """The keys and values that a layer has taken."""
    assert layer.keys is not None
    assert layer.values is not None
    return layer.keys, layer.values


def _with_room(held: Tensor, length: int = 0) -> Tensor:
    """A buffer that begins with what is held and reaches past `length` positions by a block."""
    rows, heads, num_held, width = held.shape
    buffer = held.new_empty(rows, heads, length + BLOCK, width)
    buffer[:, :, :num_held] = held
    return buffer
