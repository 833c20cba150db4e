"""Tiny models with random adapters, and what they say of the usual rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from models.rows import class_rows, random_rows
from models.tiny import CONFIGS
from torch import Tensor

from luthier.data.packing import collate
from luthier.data.placeholders import with_placeholders
from luthier.methods import LoRA
from luthier.methods.contract import Attachment
from luthier.models.call import Adapters
from luthier.models.language_model import LanguageModel
from luthier.types import Batch, Example

LENGTHS = (7, 12, 2, 9)


def randomize(attachment: Attachment, size: float = 0.1) -> None:
    """Give every trained tensor values of its own, so that no update is zero."""
    for index, parameter in enumerate(attachment.trainables.values()):
        draw = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
        parameter.data.copy_(draw * size)


def random_lora(model: LanguageModel, name: str = "default", fast: bool = True, **settings: Any) -> Attachment:
    """A LoRA whose update is not zero."""
    attachment = LoRA(rank=3, **settings).attach(model, name, seed=5, fast=fast)
    randomize(attachment)
    return attachment


def every_target(model: LanguageModel) -> tuple[str, ...]:
    """All linear layers, the embedding and the head, by their whole names."""
    return (model.anatomy.embedding, *model.anatomy.linears, model.anatomy.head)


def usual_rows(model: LanguageModel) -> list[Example]:
    """The usual rows, with classes where the model's head is over classes."""
    return class_rows(LENGTHS, model.anatomy.family.pooled) if model.classes else random_rows(LENGTHS)


def usual_batch(model: LanguageModel, adapters: Adapters) -> Batch:
    """The usual rows as one batch for these adapters: each row behind the placeholders of its own."""
    names = adapters if isinstance(adapters, tuple) else (adapters,) * len(LENGTHS)
    pairs = zip(usual_rows(model), names, strict=True)
    rows = [with_placeholders(row, model.num_virtual(name)) for row, name in pairs]
    return collate(rows, model.layout, pad_id=0)


def logprobs(model: LanguageModel, adapter: str | None = "default") -> Tensor:
    """Of the usual rows in one batch."""
    return model.forward(usual_batch(model, adapter), adapter).logprob_N.detach()


def logprobs_behind(model: LanguageModel, tokens: Sequence[int]) -> Tensor:
    """Of the usual rows behind these tokens, by the base."""
    placed = [with_placeholders(row, len(tokens)) for row in random_rows(LENGTHS)]
    for row in placed:
        row.parts[0].tokens_T[: len(tokens)] = tokens
    return model.forward(collate(placed, model.layout, pad_id=0)).logprob_N.detach()


def plain_attention(name: str) -> str:
    """What transformers computes a tiny model with: eager, but for Falcon, whose eager ALiBi is added twice."""
    return "sdpa" if CONFIGS[name][0] == "falcon" else "eager"


def quiet(sentence: str) -> None:
    """Announce nothing."""
