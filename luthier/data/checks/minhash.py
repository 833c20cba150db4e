"""Near duplicates by MinHash: rows with similar sets of words meet in a bucket, without comparing each with each.

Broder 1997, "On the resemblance and containment of documents": two sets have the same least hash with a probability that is
their Jaccard similarity J. A signature is K such least values; cut into bands of R, two rows meet in some band with
probability 1 − (1 − J^R)^(K/R). The hashes are multiply-shift (Dietzfelbinger et al. 1997): the high half of a·x + b over
64 bits, which numpy computes for all words of many rows at once; so no package is needed for it.

Shapes: N shingles, R rows, K hashes, B bands.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from luthier.store import disk

NUM_HASHES = 64
ROWS_OF_BAND = 4
NUM_BANDS = NUM_HASHES // ROWS_OF_BAND
NUM_PARTS = 16
"""Files of buckets for each band, so that one of them fits into memory when all do not."""

_MOST_BACK = 8
"""A row is paired with the first of its bucket and so many before it: a bucket of thousands stays cheap."""

Hashes = NDArray[np.uint64]
Pairs = NDArray[np.int64]

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


def words_of(text: str) -> list[str]:
    """The words of a text, in small letters; of scripts without spaces each sign."""
    if text.isascii():
        return text.lower().translate(_SPACED).split()
    return _WORD.findall(text.casefold())


_SPACED = {code: " " for code in range(128) if not (chr(code).isalnum() or chr(code) == "_")}
"""Signs of ASCII that part words, each as a space."""


def shingles(words: Sequence[str]) -> set[int]:
    """Each word and each two words in a row, as numbers."""
    hashed = list(map(_hash_of, words))
    return {*hashed, *((a * 0x9E3779B1 + b) & 0xFFFFFFFFFFFF for a, b in itertools.pairwise(hashed))}


def shingle_array(words: Sequence[str]) -> Hashes:
    """The same numbers as `shingles` gives, with those that come again, shape (N,)."""
    hash_W = np.fromiter(map(_hash_of, words), np.uint64, len(words))
    pair_W = (hash_W[:-1] * np.uint64(0x9E3779B1) + hash_W[1:]) & np.uint64(0xFFFFFFFFFFFF)
    return np.concatenate([hash_W, pair_W])


@lru_cache(maxsize=1 << 17)
def _hash_of(word: str) -> int:
    return zlib.crc32(word.encode("utf-8", "surrogatepass"))


def probability_of_meeting(similarity: float) -> float:
    """How likely two rows of a Jaccard similarity meet in at least one band."""
    return float(1 - (1 - similarity**ROWS_OF_BAND) ** NUM_BANDS)


class MinHash:
    """Signatures of sets of shingles; the same seed gives the same."""

    def __init__(self, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self._factor_K = generator.integers(0, 1 << 63, NUM_HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        self._shift_K = generator.integers(0, 1 << 63, NUM_HASHES, dtype=np.uint64)

    def signatures(self, sets: Sequence[Hashes]) -> NDArray[np.uint32]:
        """One signature (K,) a set, in which elements may come again; that of an empty set is all ones."""
        signature_RK = np.full((len(sets), NUM_HASHES), 0xFFFFFFFF, np.uint32)
        filled = [index for index, each in enumerate(sets) if len(each)]
        if not filled:
            return signature_RK
        shingle_N = np.concatenate([sets[index] for index in filled])
        starts = np.cumsum([0, *(len(sets[index]) for index in filled[:-1])])
        for k in range(NUM_HASHES):
            hash_N = (shingle_N * self._factor_K[k] + self._shift_K[k]) >> np.uint64(32)
            signature_RK[filled, k] = np.minimum.reduceat(hash_N, starts).astype(np.uint32)
        return signature_RK


def band_keys(signature_RK: NDArray[np.uint32]) -> Hashes:
    """For each row the key of its bucket in each band, (R, B)."""
    parts = signature_RK.reshape(len(signature_RK), NUM_BANDS, ROWS_OF_BAND).astype(np.uint64)
    key_RB = np.zeros(parts.shape[:2], np.uint64)
    for place in range(ROWS_OF_BAND):
        key_RB = (key_RB ^ parts[:, :, place]) * np.uint64(0x9E3779B97F4A7C15)
        key_RB ^= key_RB >> np.uint64(29)
    return key_RB


class Buckets:
    """The buckets of all bands: in memory up to `most_rows` rows, in files of a folder beyond."""

    def __init__(self, folder: Path, most_rows: int) -> None:
        self._folder = folder
        self._most_rows = most_rows
        self._held: list[tuple[NDArray[np.int64], Hashes]] = []
        self._num_held = 0
        self._is_on_disk = False

    def add(self, row_R: NDArray[np.int64], key_RB: Hashes) -> None:
        """Put rows into their buckets."""
        self._held.append((row_R, key_RB))
        self._num_held += len(row_R)
        if self._num_held > self._most_rows:
            self._spill()

    def pairs(self) -> Pairs:
        """Rows that met in a bucket, each pair once, the earlier row first: shape (pairs, 2)."""
        if self._is_on_disk:
            self._spill()
            found = [_pairs_in(part["row"], part["key"]) for part in self._parts()]
        elif self._held:
            rows = np.concatenate([row_R for row_R, _ in self._held])
            keys = np.concatenate([key_RB for _, key_RB in self._held])
            found = [_pairs_in(rows, keys[:, band]) for band in range(NUM_BANDS)]
        else:
            found = []
        together = np.concatenate([np.empty((0, 2), np.int64), *found])
        return np.unique(together, axis=0)

    def _path(self, band: int, part: int) -> Path:
        return self._folder / f"band-{band:02}-{part:02}"

    def _spill(self) -> None:
        """Append what is held to the files."""
        self._is_on_disk = True
        for row_R, key_RB in self._held:
            for band in range(NUM_BANDS):
                self._append(band, row_R, key_RB[:, band])
        self._held, self._num_held = [], 0

    def _append(self, band: int, row_R: NDArray[np.int64], key_R: Hashes) -> None:
        part_R = (key_R >> np.uint64(60)).astype(np.int64) % NUM_PARTS
        entries = np.empty(len(row_R), _ENTRY)
        entries["row"], entries["key"] = row_R, key_R
        for part in np.unique(part_R):
            path = self._path(band, int(part))
            with disk.errors(path), disk.open_for_write(path, "ab+") as file:
                disk.write(file, entries[part_R == part].tobytes())

    def _parts(self) -> Iterator[NDArray[np.void]]:
        for band in range(NUM_BANDS):
            for part in range(NUM_PARTS):
                path = self._path(band, part)
                if path.exists():
                    yield np.fromfile(path, _ENTRY)


_ENTRY = np.dtype([("row", np.int64), ("key", np.uint64)])


def _pairs_in(row_R: NDArray[np.int64], key_R: Hashes) -> Pairs:
    """The pairs of rows of one band that have the same key."""
    order = np.lexsort((row_R, key_R))
    rows, keys = row_R[order], key_R[order]
    is_new = np.concatenate([[True], keys[1:] != keys[:-1]]) if len(keys) else np.zeros(0, bool)
    first = np.maximum.accumulate(np.where(is_new, np.arange(len(keys)), 0))
    found = [np.stack([rows[first], rows], axis=1)[~is_new]]
    for back in range(1, min(_MOST_BACK, len(keys) - 1) + 1):
        same = keys[back:] == keys[:-back]
        found.append(np.stack([rows[:-back], rows[back:]], axis=1)[same])
    return np.concatenate(found)
