"""Log-probabilities of chosen tokens without ever holding the logits.

log p(y_n | h_n) = z_n[y_n] − logsumexp(z_n),  z_n = cap(W h_n + c),  computed over chunks of learned positions.
The gradient with respect to h_n, W[y_n] − p_n W, is computed in the forward pass while the chunk's probabilities are at
hand, and kept (N × D); whatever loss follows only scales it. A head that is trained, or is not a plain linear layer,
computes each chunk again in the backward pass instead.

Shapes: N learned positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from luthier.ops.products import linear

CHUNK = 128
"""Positions at a time: the chunk's logits (128 × V) stay small beside the model, and the products stay large."""

LogitsOf = Callable[[Tensor, int], Tensor]
"""The head as a function: from the hidden states of neighbouring positions, and the index of the first, to logits."""


def token_logprobs_reference(hidden_ND: Tensor, tokens_N: Tensor, logits_of: LogitsOf) -> Tensor:
    """log p of each token (nats, fp32), all logits at once."""
    return _logprobs_of_logits(logits_of(hidden_ND, 0), tokens_N)


def _logprobs_of_logits(logits_NV: Tensor, tokens_N: Tensor) -> Tensor:
    return F.log_softmax(logits_NV.float(), dim=-1).gather(-1, tokens_N[:, None])[:, 0]


def token_logprobs_recomputed(hidden_ND: Tensor, tokens_N: Tensor, logits_of: LogitsOf) -> Tensor:
    """The same, chunk by chunk, each chunk's logits computed again in the backward pass: for trained or unusual heads."""

    def of_chunk(hidden: Tensor, tokens: Tensor, start: int) -> Tensor:
        return _logprobs_of_logits(logits_of(hidden, start), tokens)

    return torch.cat(in_chunks(of_chunk, hidden_ND, tokens_N))


class Spread(NamedTuple):
    """Of each distribution (nats, fp32): log p of its token, the logarithm of Σ exp z, and the mean of log p over V."""

    logprob_N: Tensor
    logsumexp_N: Tensor
    mean_logprob_N: Tensor


def spread_of_logits(logits_NV: Tensor, tokens_N: Tensor) -> Spread:
    """The spread of whole distributions."""
    wide_NV = logits_NV.float()
    logsumexp_N = wide_NV.logsumexp(-1)
    chosen_N = wide_NV.gather(-1, tokens_N[:, None])[:, 0]
    return Spread(chosen_N - logsumexp_N, logsumexp_N, wide_NV.mean(-1) - logsumexp_N)


def spread_recomputed(hidden_ND: Tensor, tokens_N: Tensor, logits_of: LogitsOf) -> Spread:
    """The same from hidden states, chunk by chunk, each chunk's logits computed again in the backward pass."""

    def of_chunk(hidden: Tensor, tokens: Tensor, start: int) -> tuple[Tensor, ...]:
        return tuple(spread_of_logits(logits_of(hidden, start), tokens))

    return Spread(*(torch.cat(parts) for parts in zip(*in_chunks(of_chunk, hidden_ND, tokens_N), strict=True)))


def entropies(hidden_ND: Tensor, logits_of: LogitsOf) -> Tensor:
    """The entropy of each distribution (nats, fp32), shape (N,): logsumexp z − Σ softmax(z) z, chunk by chunk as above."""

    def of_chunk(hidden: Tensor, start: int) -> Tensor:
        wide_NV = logits_of(hidden, start).float()
        return wide_NV.logsumexp(-1) - (wide_NV.softmax(-1) * wide_NV).sum(-1)

    return torch.cat(in_chunks(of_chunk, hidden_ND))


def in_chunks(of_chunk: Callable[..., Any], *tensors_N: Tensor) -> list[Any]:
    """What a function gives for each chunk of neighbouring positions and its start, computed again in the backward pass."""
    starts = range(0, max(len(tensors_N[0]), 1), CHUNK)
    chunks = zip(*(tensor.split(CHUNK) for tensor in tensors_N), starts, strict=True)
    return [checkpoint(of_chunk, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]


def token_logprobs(
    hidden_ND: Tensor, tokens_N: Tensor, weight_VD: Tensor, bias_V: Tensor | None, softcap: float | None
) -> Tensor:
    """The same for a frozen linear head, the gradient computed in the forward pass."""
    return cast(Tensor, _TokenLogprobs.apply(hidden_ND, tokens_N, weight_VD, bias_V, softcap))  # type: ignore[no-untyped-call]


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, tokens_N: Tensor, weight_VD: Tensor, bias_V: Tensor | None, softcap: float | None
    ) -> Tensor:
        needs_gradient = ctx.needs_input_grad[0]
        gradient_ND = torch.empty_like(hidden_ND) if needs_gradient else None
        logprob_N = torch.empty(len(tokens_N), dtype=torch.float32, device=hidden_ND.device)
        for start in range(0, len(tokens_N), CHUNK):
            chunk = slice(start, start + CHUNK)
            logits = linear(hidden_ND[chunk], weight_VD, bias_V)
            out = None if gradient_ND is None else gradient_ND[chunk]
            logprob_N[chunk] = _chunk(logits, tokens_N[chunk], weight_VD, softcap, out)
        if gradient_ND is not None:
            ctx.save_for_backward(gradient_ND)
        return logprob_N

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None, None]:
        (d_logprob_N,) = grad_outputs
        (gradient_ND,) = ctx.saved_tensors
        return gradient_ND * d_logprob_N[:, None].to(gradient_ND.dtype), None, None, None, None


def _chunk(
    logits_NV: Tensor, tokens_N: Tensor, weight_VD: Tensor, softcap: float | None, out_ND: Tensor | None
) -> Tensor:
    """log p of a chunk's tokens; writes d log p / d hidden to `out_ND` where given. Overwrites the logits."""
    slope_NV = None
    if softcap is not None:
        tanh_NV = torch.tanh(logits_NV / softcap)
        slope_NV = 1 - tanh_NV.square()
        logits_NV = tanh_NV * softcap
    wide_NV = logits_NV.float()
    rows = torch.arange(len(tokens_N), device=tokens_N.device)
    chosen_N = wide_NV[rows, tokens_N]
    highest_N = wide_NV.amax(-1)
    if out_ND is None:
        return chosen_N - torch.logsumexp(wide_NV, dim=-1)
    p_NV = torch.softmax(wide_NV, dim=-1, out=wide_NV if wide_NV is logits_NV else None)
    # log-sum-exp without another pass over V: the largest probability is exp(highest − lse)
    logprob_N = chosen_N - (highest_N - p_NV.amax(-1).log())
    p_NV[rows, tokens_N] -= 1
    if slope_NV is not None:
        p_NV.mul_(slope_NV)
    torch.neg(linear(p_NV.to(weight_VD.dtype), weight_VD.t()), out=out_ND)
    return logprob_N
