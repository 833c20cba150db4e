"""Rows of random tokens as examples and batches, and what plain transformers says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from models.tiny import CLASSES, TYPED, VOCABULARY
from torch import Tensor
from transformers import PreTrainedModel

from luthier.data.packing import collate
from luthier.types import Batch, Example, IntArray, Layout, Origin, Part, Pooled


def random_row(length: int, document: int, learned: float = 0.6) -> Example:
    """A document of random tokens, of which about a share `learned` is learned, with weights between 0.5 and 2."""
    draw = np.random.default_rng(document * 1000 + length)
    tokens_T = draw.integers(3, VOCABULARY, length, dtype=np.int64)
    source_N = np.flatnonzero(draw.random(length - 1) < learned).astype(np.int64)
    return Example(
        parts=(Part(tokens_T),),
        source_N=source_N,
        token_N=tokens_T[source_N + 1],
        weight_N=draw.uniform(0.5, 2.0, len(source_N)).astype(np.float32),
        sample_N=np.zeros(len(source_N), dtype=np.int64),
        document=document,
        origin=Origin("rows", document + 1),
    )


def random_rows(lengths: Sequence[int]) -> list[Example]:
    """One document for each length."""
    return [random_row(length, document) for document, length in enumerate(lengths)]


def with_sources(examples: Sequence[Example]) -> list[Example]:
    """The documents as answers of an encoder-decoder, each to a source of random tokens."""
    return [replace(example, source_S=_source(example.document)) for example in examples]


def _source(document: int) -> IntArray:
    draw = np.random.default_rng(document + 77)
    return draw.integers(3, VOCABULARY, (5, 3, 8, 4, 1)[document % 5], dtype=np.int64)


def answers_of(lengths: Sequence[int]) -> Batch:
    """One answer of each length as one batch for an encoder-decoder."""
    return collate(with_sources(random_rows(lengths)), "bucketed", pad_id=0)


def class_row(length: int, document: int, pooled: Pooled) -> Example:
    """A document of random tokens and its class, read at its first or last token; every other one has a second text."""
    tokens_T = random_row(length, document).parts[0].tokens_T
    return Example(
        parts=(Part(tokens_T),),
        source_N=np.array([0 if pooled == "first" else length - 1]),
        token_N=np.array([document % len(CLASSES)]),
        weight_N=np.ones(1, dtype=np.float32),
        sample_N=np.zeros(1, dtype=np.int64),
        document=document,
        origin=Origin("rows", document + 1),
        types_P=(np.arange(length) > length // 2).astype(np.int64) if document % 2 else None,
    )


def class_rows(lengths: Sequence[int], pooled: Pooled) -> list[Example]:
    """One document with a class for each length."""
    return [class_row(length, document, pooled) for document, length in enumerate(lengths)]


def batch_of(lengths: Sequence[int], layout: Layout) -> Batch:
    """Such documents as one batch."""
    return collate(random_rows(lengths), layout, pad_id=0)


def plain_logprobs(hf: PreTrainedModel, examples: Sequence[Example]) -> Tensor:
    """Log-probabilities of the examples' targets: each document alone through the model's own forward pass."""
    pieces = []
    for example in examples:
        tokens_T = torch.from_numpy(example.parts[0].tokens_T)
        inputs = {"input_ids": tokens_T[None]}
        if example.source_S is not None:
            inputs = {"input_ids": torch.from_numpy(example.source_S)[None], "decoder_input_ids": tokens_T[None]}
        logits_TV = hf(**inputs, use_cache=False).logits[0, -len(tokens_T) :]  # a soft prompt has its own
        logprob_TV = logits_TV.float().log_softmax(-1)
        pieces.append(logprob_TV[torch.from_numpy(example.source_N), torch.from_numpy(example.token_N)])
    return torch.cat(pieces)


def plain_class_logprobs(hf: PreTrainedModel, examples: Sequence[Example]) -> Tensor:
    """Log-probabilities of the examples' classes: each document alone through the model's own forward pass."""
    pieces = []
    for example in examples:
        inputs = {"input_ids": torch.from_numpy(example.parts[0].tokens_T)[None]}
        if example.types_P is not None and hf.config.model_type in TYPED:
            inputs["token_type_ids"] = torch.from_numpy(example.types_P)[None]
        pieces.append(hf(**inputs).logits[0].float().log_softmax(-1)[torch.from_numpy(example.token_N)])
    return torch.cat(pieces)
