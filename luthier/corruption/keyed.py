"""Random draws that depend on the seed, the epoch and the document, not on who draws them or in what order.

A generator's stream depends on the calls before it, so another number of workers or another order of rows would corrupt
differently, and a resumed run would not repeat. Philox (Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405) is a
function of a key and a counter: here the key is the seed and the purpose, and the upper half of the counter is the epoch
and the document. Each document so begins a stream of its own, 2¹²⁸ blocks long, and no two of them overlap.

The corruptions draw uniform numbers only and derive the rest from them: numpy may change how its shuffles, integers and
Poisson numbers come about, and a resumed run would then go on with other text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from luthier.types import IntArray


def generator(seed: int, epoch: int, document: int, salt: int = 0) -> np.random.Generator:
    """The draws of one document in one epoch.

    salt: sets apart what is drawn for different purposes of one document, such as `luthier.ops.draws.salt_of` gives.
    """
    assert min(epoch, document) >= 0, "epochs and documents are counted from 0"
    key = np.array([seed % 2**64, salt % 2**64], dtype=np.uint64)
    counter = np.array([0, 0, epoch, document], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def below(bound: int, count: int, draw: np.random.Generator) -> IntArray:
    """So many of 0 … bound − 1, each as likely as the others, shape (count,)."""
    drawn = (draw.random(count) * bound).astype(np.int64)
    return np.minimum(drawn, bound - 1)  # the product may round up to the bound


def shuffled(number: int, draw: np.random.Generator) -> IntArray:
    """0 … number − 1 in an order of which each is as likely as the others."""
    return np.argsort(draw.random(number))


def distinct(number: int, count: int, draw: np.random.Generator) -> IntArray:
    """So many different ones of 0 … number − 1, ascending; each set is as likely as the others."""
    assert 0 <= count <= number, "no more can be chosen than there are"
    if count == 0:
        return np.zeros(0, dtype=np.int64)
    if count == number:
        return np.arange(number)
    return np.sort(np.argpartition(draw.random(number), count - 1)[:count])


def one_of(weights: Sequence[float], draw: np.random.Generator) -> int:
    """An index, as likely as its weight says beside the others'."""
    cumulative = np.cumsum(weights)
    assert cumulative[-1] > 0, "something has a weight"
    return int(np.searchsorted(cumulative / cumulative[-1], draw.random(), side="right"))
