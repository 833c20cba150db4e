"""Tiny models with random adapters, and what they say of the usual rows."""

from __future__ import annotations

from typing import Any

import torch
from models.rows import batch_of
from models.tiny import CONFIGS
from torch import Tensor

from luthier.methods import LoRA
from luthier.methods.contract import Attachment
from luthier.models.language_model import LanguageModel

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


def logprobs(model: LanguageModel, adapter: str | None = "default") -> Tensor:
    """Of the usual rows in one batch."""
    return model.forward(batch_of(LENGTHS, model.layout), adapter).logprob_N.detach()


def plain_attention(name: str) -> str:
    """What transformers computes a tiny model with: eager, but for Falcon, whose eager ALiBi is added twice."""
    return "sdpa" if CONFIGS[name][0] == "falcon" else "eager"


def quiet(sentence: str) -> None:
    """Announce nothing."""
