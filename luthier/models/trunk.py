"""What the frozen lower part of a model gives for each document, computed once and kept.

Where a method changes nothing below some layer, that part says the same about a document in every epoch. The states that
the rest reads (those that enter the first layer that needs a backward pass, or all that a side network taps) are kept
under a hash of the document's tokens; later epochs begin with them. In an encoder-decoder a document is a source and an
answer: what the encoder gives is kept under the source alone, what the decoder gives under both.
Shapes: B rows, T tokens, S states that are kept, N tokens (B T, or a document's), D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from luthier.models.taps import Tapped, Taps
from luthier.ops.segments import ancestors
from luthier.store.rows import RowCache
from luthier.types import Batch, Segment

Document = tuple[Segment, ...]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class _Stream:
    """A batch's tokens, or its sources': where each document's are, under which key, and which states are kept.

    A document is one or more segments, of which other documents of the batch may have the earlier ones too.
    """

    tokens_BT: Tensor
    documents: tuple[Document, ...]
    keys: tuple[str, ...]
    numbers: tuple[int, ...]


class TrunkCache:
    """The kept states of documents, for one model."""

    def __init__(self, folder: Path, taps: Taps, width: int, dtype: torch.dtype, made_by: str = "") -> None:
        """Open the cache. taps: which states. made_by: which weights give them, in which number format.

        A folder may hold states of other taps, formats or weights; they are not found.
        """
        self.taps = taps
        self._width = width
        self._dtype = dtype
        self._rows = RowCache(folder, width * dtype.itemsize, "set training.trunk_cache_gb to 0")
        self._salt = hashlib.blake2b(f"{made_by} {taps} {dtype} by state".encode()).digest()

    def read(self, batch: Batch) -> Tapped | None:
        """The states of all the batch's tokens; None unless every document's are held."""
        found = []
        for stream in self._streams(batch):
            states = self._read(stream)
            if states is None:
                return None
            found.append(states)
        return Tapped(*found)

    def write(self, batch: Batch, tapped: Tapped) -> None:
        """Keep the states of the batch's documents."""
        for stream, states in zip(self._streams(batch), (tapped.own, tapped.source), strict=True):
            self._write(stream, states)

    def __len__(self) -> int:
        """How many documents are held; of an encoder-decoder, how many sources and answers to them."""
        return len(self._rows)

    def _read(self, stream: _Stream) -> dict[int, Tensor] | None:
        """The states of all tokens of a stream by number, each (B, T, D); None unless every document's are held."""
        if not stream.numbers:
            return {}
        found = [self._rows.get(key) for key in stream.keys]
        if any(rows is None for rows in found):
            return None
        shape = stream.tokens_BT.shape
        read = {number: torch.zeros(shape.numel(), self._width, dtype=self._dtype) for number in stream.numbers}
        for document, rows in zip(stream.documents, found, strict=True):
            lengths = [segment.length for segment in document]
            states_SND = torch.from_numpy(rows).view(self._dtype).view(-1, sum(lengths), self._width)
            for state_ND, states in zip(read.values(), states_SND, strict=True):
                for segment, own in zip(document, states.split(lengths), strict=True):
                    state_ND[segment.start : segment.end] = own
        device = stream.tokens_BT.device
        return {number: state_ND.view(*shape, self._width).to(device) for number, state_ND in read.items()}

    def _write(self, stream: _Stream, tapped: Mapping[int, Tensor]) -> None:
        """Keep the states of a stream's documents: state by state, of each all its tokens."""
        if not stream.numbers:
            return
        states = [tapped[number].flatten(0, 1).to("cpu", self._dtype) for number in stream.numbers]
        for document, key in zip(stream.documents, stream.keys, strict=True):
            own = [state_ND[segment.start : segment.end] for state_ND in states for segment in document]
            self._rows.put(key, torch.cat(own).view(torch.uint8).numpy())

    def _streams(self, batch: Batch) -> tuple[_Stream, _Stream]:
        """The batch's own tokens, whose states depend on all that is given with them, and those of its sources."""
        documents = _documents(batch.segments)
        given = [_texts(batch.tokens_BT, documents), _types(batch, documents)]
        source = _Stream(batch.tokens_BT, (), (), ())
        if batch.sources is not None:
            tokens_BS, sources = batch.sources.tokens_BS, _documents(batch.sources.segments)
            read = _texts(tokens_BS, sources)
            given.append(read)
            source = _Stream(tokens_BS, sources, self._keys(read), self.taps.source)
        return _Stream(batch.tokens_BT, documents, self._keys(*given), self.taps.own), source

    def _keys(self, *given: Sequence[bytes]) -> tuple[str, ...]:
        """A key for each document, of all that its states depend on."""
        keys = []
        for texts in zip(*given, strict=True):
            digest = hashlib.blake2b(key=self._salt, digest_size=16)
            for text in texts:
                digest.update(len(text).to_bytes(8, "little"))
                digest.update(text)
            keys.append(digest.hexdigest())
        return tuple(keys)


def _documents(segments: tuple[Segment, ...]) -> tuple[Document, ...]:
    """What each segment that no other goes on from is the end of, from its beginning on."""
    parents = {segment.parent for segment in segments}
    ends = [index for index in range(len(segments)) if index not in parents]
    return tuple(tuple(segments[index] for index in ancestors(segments, end)) for end in ends)


def _texts(tokens_BT: Tensor, documents: Sequence[Document]) -> list[bytes]:
    """Each document's tokens."""
    tokens_N = tokens_BT.flatten().cpu().numpy().astype(np.int64)
    return [b"".join(tokens_N[segment.start : segment.end].tobytes() for segment in document) for document in documents]


def _types(batch: Batch, documents: Sequence[Document]) -> list[bytes]:
    """Which of each document's tokens are of a second text; nothing for one that has none."""
    if batch.types_BT is None:
        return [b""] * len(documents)
    return [types if any(types) else b"" for types in _texts(batch.types_BT, documents)]
