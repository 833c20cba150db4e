"""The loss that most objectives share: how unlikely the model finds its targets."""

from __future__ import annotations

from torch import Tensor


def nll_sum(logprob_N: Tensor, weight_N: Tensor) -> Tensor:
    """− Σ_n w_n log p(y_n), in nats; shape ()."""
    return -(logprob_N * weight_N).sum()
