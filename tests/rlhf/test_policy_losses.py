"""The policy's losses: where they have a gradient, and which."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from luthier.rlhf.policy_losses import clipped, divergence, is_clipped, value_loss


def gradient(ratio: float, advantage: float, cap: float | None = None) -> float:
    rho = torch.tensor([ratio], requires_grad=True)
    clipped(rho, torch.tensor([advantage]), 0.2, 0.3, cap).sum().backward()
    assert rho.grad is not None
    return float(rho.grad)


def test_at_ratio_one_the_loss_is_minus_the_advantage() -> None:
    advantage = torch.tensor([2.0, -1, 0.5])
    torch.testing.assert_close(clipped(torch.ones(3), advantage, 0.2, 0.2), -advantage)


@pytest.mark.parametrize(
    ("ratio", "advantage", "has_one"),
    [
        (1.0, 1, True),
        (1.29, 1, True),
        (1.31, 1, False),
        (0.5, 1, True),
        (0.79, -1, False),
        (0.81, -1, True),
        (5.0, -1, True),
    ],
)
def test_the_gradient_ends_where_the_clip_begins(ratio: float, advantage: float, has_one: bool) -> None:
    assert (gradient(ratio, advantage) != 0) == has_one
    lost = is_clipped(torch.tensor([ratio]), torch.tensor([float(advantage)]), 0.2, 0.3)
    assert bool(lost) != has_one


def test_the_dual_clip_ends_the_gradient_of_far_ratios_with_a_negative_advantage() -> None:
    assert gradient(3.5, -1, cap=3.0) == 0
    assert gradient(2.5, -1, cap=3.0) == 1
    assert gradient(3.5, 1, cap=3.0) == 0  # by the ordinary clip


def test_the_estimates_of_the_divergence_against_enumeration() -> None:
    """A policy of 3 tokens out of 4 words that are drawn one by one: all 64 answers, each with its probability."""
    torch.manual_seed(0)
    logits, reference = (
        torch.randn(3, 4, dtype=torch.float64, requires_grad=True),
        torch.randn(3, 4, dtype=torch.float64),
    )
    answers = torch.tensor(list(itertools.product(range(4), repeat=3)))

    def logprobs(scores: Tensor) -> Tensor:
        return scores.log_softmax(-1)[torch.arange(3), answers]

    own, other = logprobs(logits), logprobs(reference)
    chance = own.sum(1).exp()
    delta = own - other
    exact = (logits.softmax(-1) * (logits.log_softmax(-1) - reference.log_softmax(-1))).sum()
    for kind in ("k1", "k3"):
        torch.testing.assert_close((chance[:, None] * divergence(delta, kind)).sum(), exact)  # type: ignore[arg-type]
    (expected,) = torch.autograd.grad(exact, logits, retain_graph=True)
    # as losses, drawn from the policy: the chance itself has no gradient
    ratio = (own - own.detach()).exp()
    for loss in (divergence(delta, "k2"), ratio * divergence(delta, "k3")):
        (found,) = torch.autograd.grad((chance.detach()[:, None] * loss).sum(), logits, retain_graph=True)
        torch.testing.assert_close(found, expected)
    (nothing,) = torch.autograd.grad(
        (chance.detach()[:, None] * divergence(delta, "k1")).sum(), logits, retain_graph=True
    )
    torch.testing.assert_close(nothing, torch.zeros_like(nothing))


def test_k3_is_never_negative_and_all_are_zero_where_both_agree() -> None:
    delta = torch.randn(10**5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert bool((divergence(delta, "k3") >= 0).all())
    for kind in ("k1", "k2", "k3"):
        assert not divergence(torch.zeros(3), kind).any()  # type: ignore[arg-type]


def test_a_value_that_moved_too_far_has_no_gradient() -> None:
    value = torch.tensor([0.9, 0.1], requires_grad=True)
    value_loss(value, torch.zeros(2), torch.tensor([0.05, 1.0]), 0.2).sum().backward()
    assert value.grad is not None
    # too high already and moved away from the return: still pulled back; beyond the clip towards the return: let go
    torch.testing.assert_close(value.grad, torch.tensor([0.85, -0.9]))
    far = torch.tensor([0.5], requires_grad=True)
    value_loss(far, torch.zeros(1), torch.tensor([1.0]), 0.2).sum().backward()
    assert far.grad is not None
    assert float(far.grad) == 0
