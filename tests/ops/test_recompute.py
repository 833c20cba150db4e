"""Tensors that are not kept come back the same, are computed once for all their users, and are never mistaken."""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.ops.norm import rms_norm
from luthier.ops.recompute import Recomputable


def test_gradients_are_the_same_and_the_tensor_is_computed_once_for_all_who_use_it() -> None:
    torch.manual_seed(0)
    x, gain, first, second = torch.randn(5, 8), torch.rand(8), torch.randn(8, 3), torch.randn(8, 4)
    trained = [tensor.requires_grad_() for tensor in (x, first, second)]
    calls: list[int] = []

    def loss(recomputable: Recomputable) -> Tensor:
        y = rms_norm(x, gain, 1e-6)
        detached = x.detach()

        def again() -> Tensor:
            calls.append(1)
            return rms_norm(detached, gain, 1e-6)

        recomputable.add(y, again)
        return (y @ first).square().sum() + (y.view(5, 1, 8) @ second).exp().sum()

    expected = torch.autograd.grad(loss(Recomputable()), trained)
    recomputable = Recomputable()
    with recomputable.hooks():
        total = loss(recomputable)
    assert calls == []
    for one, other in zip(torch.autograd.grad(total, trained), expected, strict=True):
        assert torch.equal(one, other)
    assert calls == [1]


def test_a_tensor_that_took_the_memory_of_a_dead_one_is_kept_itself() -> None:
    recomputable = Recomputable()
    weight = torch.randn(64, 64, requires_grad=True)
    with recomputable.hooks():
        dead = torch.randn(64, 64)
        recomputable.add(dead, lambda: torch.full((64, 64), torch.nan))
        del dead
        total = sum((torch.randn(64, 64) @ weight).sum() for _ in range(20))
    assert isinstance(total, Tensor)
    assert bool(torch.isfinite(torch.autograd.grad(total, weight)[0]).all())
