"""The loss that most objectives share: how unlikely the model finds its targets."""

from __future__ import annotations

from torch import Tensor

from luthier.types import Targets


def nll_sum(logprob_N: Tensor, weight_N: Tensor) -> Tensor:
    """− Σ_n w_n log p(y_n), in nats; shape ()."""
    return -(logprob_N * weight_N).sum()


def row_nll(logprob_N: Tensor, targets: Targets) -> Tensor:
    """− Σ_n w_n log p(y_n) over each row's targets, in nats; shape (R,)."""
    return summed_by_row(-logprob_N * targets.weight_N, targets)


def summed_by_row(number_N: Tensor, targets: Targets) -> Tensor:
    """The sum over each row's targets, shape (R,)."""
    return number_N.new_zeros(targets.num_rows).index_add(0, targets.row_N, number_N)
