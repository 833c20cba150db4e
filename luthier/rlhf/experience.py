"""Samples as examples that the loop learns from: a prompt once, its answers behind it, a target for each of their tokens.

Shapes: T tokens of an answer, N targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from luthier.rlhf.samples import Sample
from luthier.types import Example, FloatArray, Part

Given = Mapping[str, FloatArray]
"""Numbers of each token of an answer, by name, each shape (T,)."""


def example_of(
    prompt: Example, samples: Sequence[Sample], given: Sequence[Given], weights: Sequence[float], document: int
) -> Example:
    """Answers to one prompt. weights: what each answer's tokens count."""
    lengths = [sample.num_tokens for sample in samples]
    start, ends = prompt.num_part_tokens, np.cumsum(lengths)
    sources = [
        np.concatenate([[start - 1], start + end - length + np.arange(length - 1)])
        for length, end in zip(lengths, ends, strict=True)
    ]
    tokens = [np.array(sample.tokens, dtype=np.int64) for sample in samples]
    return Example(
        parts=(*prompt.parts, *(Part(answer_T, parent=len(prompt.parts) - 1) for answer_T in tokens)),
        source_N=np.concatenate(sources).astype(np.int64),
        token_N=np.concatenate(tokens),
        weight_N=np.repeat(np.array(weights, dtype=np.float32), lengths),
        sample_N=np.repeat(np.arange(len(samples)), lengths),
        document=document,
        origin=prompt.origin,
        given={name: np.concatenate([each[name] for each in given]).astype(np.float32) for name in given[0]},
    )


def chunks_within(prompt: Example, samples: Sequence[Sample], budget: int) -> list[list[int]]:
    """Which answers to a prompt are computed behind one copy of it, so that no example has more tokens than the budget."""
    chunks: list[list[int]] = []
    room = 0
    for index, sample in enumerate(samples):
        if not chunks or sample.num_tokens > room:
            chunks.append([])
            room = budget - prompt.num_part_tokens
        chunks[-1].append(index)
        room -= sample.num_tokens
    return chunks


def split_by_sample(said: Sequence[FloatArray], lengths: Sequence[Sequence[int]]) -> list[FloatArray]:
    """What was said of each example's targets, as that of each answer."""
    return [part for said_N, own in zip(said, lengths, strict=True) for part in np.split(said_N, np.cumsum(own)[:-1])]
