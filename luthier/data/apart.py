"""Answers that share a prompt, each with the prompt before it: for models whose rows cannot share tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from luthier.types import Example, IntArray, Part


def laid_apart(example: Example) -> Example:
    """The example with each of its answers behind a copy of what it goes on from; one that shares nothing stays as it is.

    Answer k is the k-th part that no other goes on from, and has the targets of sample k; those of further samples, which are
    of the shared beginning itself, are the first answer's.
    """
    parents = {part.parent for part in example.parts} - {None}
    ends = [index for index in range(len(example.parts)) if index not in parents]
    if not parents or not all(part.causal for part in example.parts):
        return example
    starts = np.cumsum([0, *(len(part.tokens_T) for part in example.parts)])
    rows: list[IntArray] = []
    moved_N = np.zeros_like(example.source_N)
    owner_N = np.where(example.sample_N < len(ends), example.sample_N, 0)
    for answer, end in enumerate(ends):
        chain = _ancestors(example.parts, end)
        places = np.concatenate([np.arange(starts[index], starts[index + 1]) for index in chain])
        is_own = owner_N == answer
        moved_N[is_own] = sum(map(len, rows)) + np.searchsorted(places, example.source_N[is_own])
        rows.append(np.concatenate([example.parts[index].tokens_T for index in chain]))
    return replace(example, parts=tuple(Part(row) for row in rows), source_N=moved_N)


def _ancestors(parts: tuple[Part, ...], end: int) -> list[int]:
    """The parts that one goes on from, the first of all first, and it itself."""
    chain, parent = [end], parts[end].parent
    while parent is not None:
        chain.insert(0, parent)
        parent = parts[parent].parent
    return chain
