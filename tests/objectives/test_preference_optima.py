"""Where preference losses come to rest over tables: one number of each answer to one prompt, and all pairs at their true chances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from luthier.objectives.dpo import DPOLoss, dpo
from luthier.objectives.preference import Pairs

NUM_ANSWERS = 6


def drawn(seed: int) -> Tensor:
    return torch.randn(NUM_ANSWERS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


REWARD_A, REFERENCE_A = drawn(1), drawn(2).log_softmax(0)
TOKENS_A = torch.tensor([1.0, 4, 2, 7, 3, 1])
FIRST, SECOND = torch.triu_indices(NUM_ANSWERS, NUM_ANSWERS, 1)


def resting(loss: Callable[[Tensor], Tensor], start_A: Tensor) -> Tensor:
    """The numbers of least loss."""
    number_A = start_A.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([number_A], max_iter=300, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(number_A)
        value.backward()
        return value

    cast(Any, optimizer).step(closure)
    return number_A.detach()


def pairs_at(ratio_A: Tensor, better: Tensor, worse: Tensor) -> Pairs:
    """log π / π_ref of pairs of answers."""
    return Pairs(ratio_A[better], ratio_A[worse], TOKENS_A[better], TOKENS_A[worse])


@pytest.mark.parametrize("beta", [0.1, 1.0, 3.0])
@pytest.mark.parametrize(("loss", "noise"), [("sigmoid", 0.0), ("robust", 0.2)])
def test_dpo_rests_at_the_reference_tilted_by_the_reward(loss: DPOLoss, noise: float, beta: float) -> None:
    """π* ∝ π_ref exp(r / β), where the chances are Bradley and Terry's: Rafailov et al. 2023, equation 4.

    Robust DPO rests there though a share of the labels are turned round.
    """
    chance_P = torch.sigmoid(REWARD_A[FIRST] - REWARD_A[SECOND])
    told_P = (1 - noise) * chance_P + noise * (1 - chance_P)

    def mean_loss(logit_A: Tensor) -> Tensor:
        ratio_A = logit_A.log_softmax(0) - REFERENCE_A
        as_told = dpo(pairs_at(ratio_A, FIRST, SECOND), beta, loss, noise)
        turned = dpo(pairs_at(ratio_A, SECOND, FIRST), beta, loss, noise)
        return (told_P * as_told + (1 - told_P) * turned).mean()

    found_A = resting(mean_loss, REFERENCE_A).softmax(0)
    expected_A = (REFERENCE_A + REWARD_A / beta).softmax(0)
    assert float((found_A - expected_A).abs().sum()) / 2 < 1e-3
    assert float((REFERENCE_A.exp() - expected_A).abs().sum()) / 2 > 0.05, "the reference itself would do"


def test_smoothed_dpo_holds_the_margin_where_labels_are_certain() -> None:
    """log((1 − ε) / ε) / β; without ε there is no rest."""
    beta, epsilon = 0.5, 0.1

    def loss(gap: Tensor) -> Tensor:
        ones = torch.ones_like(gap)
        return dpo(Pairs(gap, torch.zeros_like(gap), ones, ones), beta, "sigmoid", epsilon).sum()

    found = resting(loss, torch.zeros(1, dtype=torch.float64))
    assert float(found) == pytest.approx(float(torch.log(torch.tensor(9.0))) / beta, rel=1e-4)


@pytest.mark.parametrize("tokens", [1.0, 5.0])
@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize("chance", [0.0, 0.5, 0.7, 1.0])
def test_ipo_rests_at_a_margin_that_is_bounded_even_where_one_answer_always_wins(
    chance: float, beta: float, tokens: float
) -> None:
    """(2p − 1) / (2β) nats a token, p how often the first answer wins: Azar et al. 2023, section 5."""
    count = torch.full((1,), tokens)

    def loss(ratio_A: Tensor) -> Tensor:
        first, second = ratio_A[:1], ratio_A[1:]
        wins, loses = Pairs(first, second, count, count), Pairs(second, first, count, count)
        return (chance * dpo(wins, beta, "ipo") + (1 - chance) * dpo(loses, beta, "ipo")).sum()

    found = resting(loss, torch.tensor([0.3, -0.2], dtype=torch.float64))
    assert float(found[0] - found[1]) / tokens == pytest.approx((2 * chance - 1) / (2 * beta), abs=1e-5)
