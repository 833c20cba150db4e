"""The losses of a policy's tokens, as pure functions of log-probabilities (nats) and advantages.

Shapes: N tokens. ρ = π / π_old, δ = log π − log π_ref of the token that was drawn.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

KL = Literal["k1", "k2", "k3"]


def clipped(ratio_N: Tensor, advantage_N: Tensor, low: float, high: float, cap: float | None = None) -> Tensor:
    """max(−A ρ, −A clip(ρ, 1 − low, 1 + high)): Schulman et al. 2017, https://arxiv.org/abs/1707.06347, equation 7.

    cap: the dual clip (Ye et al. 2019, https://arxiv.org/abs/1912.09729, equation 5): where A < 0 the loss is at most −A cap.
    """
    loss_N = torch.maximum(-advantage_N * ratio_N, -advantage_N * ratio_N.clamp(1 - low, 1 + high))
    if cap is None:
        return loss_N
    return torch.where(advantage_N < 0, torch.minimum(loss_N, -advantage_N * cap), loss_N)


def is_clipped(ratio_N: Tensor, advantage_N: Tensor, low: float, high: float) -> Tensor:
    """Whether the clip takes a token's gradient away, shape (N,)."""
    return ((advantage_N > 0) & (ratio_N > 1 + high)) | ((advantage_N < 0) & (ratio_N < 1 - low))


def divergence(delta_N: Tensor, kind: KL) -> Tensor:
    """An estimate of KL(π ‖ π_ref) from each token that π drew: Schulman 2020, http://joschu.net/blog/kl-approx.html.

        k1 = δ,    k2 = δ² / 2,    k3 = exp(−δ) − 1 + δ

    As a loss k1 has no gradient in expectation, k2 that of KL(π ‖ π_ref), and k3 times ρ that too.
    """
    match kind:
        case "k1":
            return delta_N
        case "k2":
            return delta_N.square() / 2
        case "k3":
            return torch.expm1(-delta_N) + delta_N


def value_loss(value_N: Tensor, old_N: Tensor, return_N: Tensor, clip: float | None) -> Tensor:
    """½ max((V − G)², (clip(V, V_old − ε, V_old + ε) − G)²), ε the clip; ½ (V − G)² without one."""
    loss_N = (value_N - return_N).square()
    if clip is not None:
        near_N = old_N + (value_N - old_N).clamp(-clip, clip)
        loss_N = torch.maximum(loss_N, (near_N - return_N).square())
    return loss_N / 2


def is_value_clipped(value_N: Tensor, old_N: Tensor, return_N: Tensor, clip: float) -> Tensor:
    """Whether the clip of `value_loss` takes a value's gradient away, shape (N,)."""
    near_N = old_N + (value_N - old_N).clamp(-clip, clip)
    return ((value_N - old_N).abs() > clip) & ((near_N - return_N).abs() > (value_N - return_N).abs())
