"""What a forward pass gives an objective: the states at the batch's targets, and what the head says of them; and what other
models say of the same targets.

Nothing is computed before it is asked for, so each objective pays for what it reads. The head runs over the learned
positions alone, and over words in chunks whose logits are never held together.

Shapes: N learned targets, D width, V vocabulary, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.models.anatomy import Anatomy
from luthier.models.call import Call, calling
from luthier.models.fast_layers import FastLinear
from luthier.models.logits import logit_bias, logits, read_by_words, softcap
from luthier.ops.head import (
    Spread,
    entropies,
    spread_recomputed,
    token_logprobs,
    token_logprobs_recomputed,
    token_logprobs_reference,
)
from luthier.ops.imitation import KnownWords
from luthier.types import Targets


@dataclass(frozen=True)
class HeadCall:
    """A model's head in one call: the adapters of its positions take part. is_fast: whether `ops` may compute it.

    temperature: what its logits are divided by.
    """

    hf: PreTrainedModel
    anatomy: Anatomy
    call: Call
    is_fast: bool
    temperature: float = 1.0

    def logits(self, hidden_ND: Tensor, start: int = 0) -> Tensor:
        """The logits of neighbouring positions of the call, from the one at `start` on, shape (N, V) or (N, C)."""
        with calling(self.call.slice(start, start + len(hidden_ND))):
            said = logits(self.hf, self.anatomy, hidden_ND)
        return said if self.temperature == 1 else said / self.temperature

    def logprobs(self, hidden_ND: Tensor, tokens_N: Tensor) -> Tensor:
        """log p of each position's token (nats, fp32), shape (N,)."""
        if not self.is_fast or self.anatomy.purpose != "words":
            return token_logprobs_reference(hidden_ND, tokens_N, self.logits)
        head = self.hf.get_submodule(self.anatomy.head)
        is_plain = type(head) in (nn.Linear, FastLinear) and not head.weight.requires_grad and self.temperature == 1
        if not is_plain or torch.is_autocast_enabled(hidden_ND.device.type):
            return token_logprobs_recomputed(hidden_ND, tokens_N, self.logits)
        own_V = head.bias if isinstance(head, nn.Linear) else None
        bias_V = logit_bias(self.hf, self.anatomy) if own_V is None else own_V
        with calling(self.call):
            read_ND = read_by_words(self.hf, self.anatomy, hidden_ND)
        cap = softcap(self.hf, self.anatomy)
        return token_logprobs(read_ND, tokens_N, head.get_parameter("weight"), bias_V, cap)


@dataclass(frozen=True)
class Outputs:
    """The states that the head reads at the targets, shape (N, D), and the head.

    beside: what other models say of the same targets, by their roles, without gradient; each is asked when it is first read.
    """

    hidden_ND: Tensor
    targets: Targets
    head: HeadCall
    beside: Mapping[str, Beside] = field(default_factory=dict)

    @cached_property
    def logprob_N(self) -> Tensor:
        """log p of each target's token (nats, fp32)."""
        return self.head.logprobs(self.hidden_ND, self.targets.token_N)

    def at(self, temperature: float) -> Outputs:
        """The same of the model whose logits are divided by a temperature."""
        if temperature == self.head.temperature:
            return self
        return replace(self, head=replace(self.head, temperature=temperature))

    @cached_property
    def spread(self) -> Spread:
        """How each target's whole distribution lies: for losses that look beyond the target's own token."""
        return spread_recomputed(self.hidden_ND, self.targets.token_N, self.head.logits)

    @cached_property
    def entropy_N(self) -> Tensor:
        """The entropy of each target's whole distribution (nats, fp32)."""
        return entropies(self.hidden_ND, self.head.logits)

    @cached_property
    def logits_NC(self) -> Tensor:
        """The logits of a head over classes, fp32, all at once."""
        return self.head.logits(self.hidden_ND).float()


@dataclass(frozen=True)
class KnownLogprobs:
    """log p of each target's token (nats, fp32) as it was kept, shape (N,)."""

    logprob_N: Tensor


@dataclass(frozen=True)
class Values:
    """What a critic expects at each target (fp32), shape (N,)."""

    value_N: Tensor


Beside = Outputs | KnownWords | KnownLogprobs | Values
"""What another model says of the targets: all that can be asked of it, or what is known of it."""
