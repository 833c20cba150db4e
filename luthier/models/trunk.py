"""What the frozen lower part of a model gives for each document, computed once and kept.

Where a method changes nothing below some layer, that part says the same about a document in every epoch. The states that
the rest reads (those that enter the first layer that needs a backward pass, or all that a side network taps) are kept
under a hash of the document's tokens; later epochs begin with them.
Shapes: B rows, T tokens, S states that are kept, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from luthier.store.rows import RowCache
from luthier.types import Batch, Segment

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class TrunkCache:
    """The kept states of documents, for one model."""

    def __init__(self, folder: Path, numbers: tuple[int, ...], width: int, dtype: torch.dtype) -> None:
        """Open the cache. numbers: which states, by the number of the layer that gives them (0: what enters the first)."""
        self.numbers = numbers
        self._width = width
        self._dtype = dtype
        self._rows = RowCache(folder, bytes_a_token(len(numbers), width, dtype))

    def read(self, batch: Batch) -> dict[int, Tensor] | None:
        """The states of all the batch's tokens by number, each (B, T, D); None unless every document's are held."""
        found = [self._rows.get(_key(batch, segment)) for segment in batch.segments]
        if any(rows is None for rows in found):
            return None
        device = batch.tokens_BT.device
        num_tokens = batch.tokens_BT.numel()
        flat_NSD = torch.zeros(num_tokens, len(self.numbers), self._width, dtype=self._dtype)
        for segment, rows in zip(batch.segments, found, strict=True):
            assert rows is not None
            states = torch.from_numpy(rows.copy()).view(self._dtype)
            flat_NSD[segment.start : segment.end] = states.view(segment.length, len(self.numbers), self._width)
        shape = (*batch.tokens_BT.shape, self._width)
        return {number: flat_NSD[:, index].reshape(shape).to(device) for index, number in enumerate(self.numbers)}

    def write(self, batch: Batch, tapped: Mapping[int, Tensor]) -> None:
        """Keep the states of the batch's documents."""
        states_NSD = torch.stack([tapped[number].flatten(0, 1) for number in self.numbers], dim=1).to(
            "cpu", self._dtype
        )
        for segment in batch.segments:
            own = states_NSD[segment.start : segment.end].contiguous()
            self._rows.put(_key(batch, segment), own.view(torch.uint8).numpy().reshape(segment.length, -1))

    def __len__(self) -> int:
        """How many documents are held."""
        return len(self._rows)


def bytes_a_token(num_states: int, width: int, dtype: torch.dtype) -> int:
    """What a token takes on disk."""
    return num_states * width * dtype.itemsize


def _key(batch: Batch, segment: Segment) -> str:
    """A hash of a document's tokens; documents must not share segments."""
    assert segment.parent is None, "a beginning in common has no document of its own"
    here = slice(segment.start, segment.end)
    tokens = batch.tokens_BT.flatten()[here].cpu().numpy().astype(np.int64)
    digest = hashlib.blake2b(tokens.tobytes(), digest_size=16)
    if batch.types_BT is not None and bool(batch.types_BT.flatten()[here].any()):
        digest.update(batch.types_BT.flatten()[here].cpu().numpy().astype(np.int64).tobytes())
    return digest.hexdigest()
