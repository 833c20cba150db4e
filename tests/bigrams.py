"""A model of language that is a table: the scores of the next token by the present one, so that any library can be given it."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from luthier.types import Batch, Targets


class Bigram(nn.Module):
    """Called as a model of transformers is; padding and masks change nothing of it. Shape: V words."""

    def __init__(self, num_words: int, seed: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.table_VV = nn.Parameter(torch.randn(num_words, num_words, generator=draw))

    def forward(self, input_ids: Tensor, **rest: Any) -> SimpleNamespace:
        """The logits after each token."""
        return SimpleNamespace(logits=self.table_VV[input_ids])

    def says(self, batch: Batch) -> BigramSays:
        """What it says of a packed batch's targets."""
        targets = batch.targets
        at_N = batch.tokens_BT.reshape(-1)[targets.source_N]
        logprob_N = self.table_VV.log_softmax(-1)[at_N, targets.token_N]
        return BigramSays(logprob_N, targets)

    def slope(self, loss: Tensor) -> Tensor:
        """The gradient of a loss by the table."""
        (gradient_VV,) = torch.autograd.grad(loss, self.table_VV)
        return gradient_VV


@dataclass(frozen=True)
class BigramSays:
    """log p of targets, as objectives read outputs."""

    logprob_N: Tensor
    targets: Targets

    def at(self, temperature: float) -> BigramSays:
        """Only the model's own probabilities are asked for."""
        assert temperature == 1.0
        return self
