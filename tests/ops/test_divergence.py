"""The disagreement of two passes: its value, its one-sided gradients, and its chunks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from near import assert_all_near, assert_near
from torch import Tensor

from luthier.ops.divergence import divergence_of_logits, divergence_recomputed, divergence_reference


def logits(seed: int, rows: int = 5) -> Tensor:
    """Random logits over eleven tokens."""
    return torch.randn(rows, 11, generator=torch.Generator().manual_seed(seed)).requires_grad_(True)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) of each row, from logits."""
    return F.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="none").sum(-1)


def test_it_is_half_of_both_divergences() -> None:
    p, q = logits(0), logits(1)
    assert_near(divergence_of_logits(p, q), 0.5 * (kl(p, q) + kl(q, p)))


def test_each_divergence_pulls_its_first_side_only() -> None:
    p, q = logits(0), logits(1)
    found = torch.autograd.grad(divergence_of_logits(p, q).sum(), (p, q))
    (of_p,) = torch.autograd.grad(0.5 * kl(p, q.detach()).sum(), p)
    (of_q,) = torch.autograd.grad(0.5 * kl(q, p.detach()).sum(), q)
    assert_all_near(found, (of_p, of_q))


def test_passes_that_agree_have_none_and_feel_no_pull() -> None:
    p = logits(0)
    found = divergence_of_logits(p, p.detach().clone())
    assert float(found.detach().abs().max()) < 1e-6
    (gradient,) = torch.autograd.grad(found.sum(), p)
    assert float(gradient.abs().max()) < 1e-6


@pytest.mark.parametrize("rows", [0, 1, 128, 300])
def test_chunks_change_neither_value_nor_gradient(rows: int) -> None:
    hidden = [torch.randn(rows, 4, generator=torch.Generator().manual_seed(i)).requires_grad_(True) for i in (2, 3)]
    head = torch.randn(4, 11, generator=torch.Generator().manual_seed(4)).requires_grad_(True)
    results = []
    for divergence in (divergence_recomputed, divergence_reference):
        d = divergence(hidden[0], hidden[1], lambda h, start: h @ head, lambda h, start: h @ head * 2)
        assert d.shape == (rows,)
        results.append([d, *torch.autograd.grad((d * torch.arange(rows)).sum(), [*hidden, head])])
    assert_all_near(*results)
