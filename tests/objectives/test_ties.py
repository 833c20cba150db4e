"""Rankings with answers that are as good: their losses are the means over every order that breaks the ties."""

from __future__ import annotations

import math
from itertools import combinations, permutations
from statistics import fmean

import pytest
import torch
from models.tiny import tiny_tokenizer
from near import assert_near
from torch import Tensor

from luthier.data.packing import collate
from luthier.data.rendering import Renderer
from luthier.errors import DataError
from luthier.objectives import Reward
from luthier.types import Completion, Example, Origin, Ranking

PLACES = [(0, 0, 1), (0, 1, 1), (0, 0, 0), (2, 0, 1, 0), (1, 0, 0, 1, 2), (0, 1, 2, 3)]
WORDS = ("w5", "w6 w7", "w8", "w9 w10 w11", "w12")


def example(places: tuple[int, ...], objective: Reward) -> Example:
    """A row as a file has it: rendered, and made an example of."""
    answers = tuple(Completion("w3 w4", WORDS[at]) for at in range(len(places)))
    renderer = Renderer(tiny_tokenizer(), None)
    return objective.example(renderer.render(Ranking(answers, places)), 0, Origin("rows", 4))


def loss_of(places: tuple[int, ...], score_K: Tensor, objective: Reward) -> Tensor:
    targets = collate([example(places, objective)], "packed", 0).targets
    (loss,) = objective.losses(score_K, targets)
    return loss


def orders(places: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Every strict ranking of the answers in which none stands before one that is better."""
    apart = [(i, j) for i, j in permutations(range(len(places)), 2) if places[i] < places[j]]
    return [order for order in permutations(range(len(places))) if all(order[i] < order[j] for i, j in apart)]


def drawn(count: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize(
    "objective",
    [Reward(), Reward(label_noise=0.2), Reward(centre=0.1), Reward(ranking="best-of")],
    ids=["pairs", "with noise", "with centring", "best-of"],
)
@pytest.mark.parametrize("places", PLACES)
def test_ties_are_the_mean_over_all_orders_that_break_them(places: tuple[int, ...], objective: Reward) -> None:
    score_K = drawn(len(places)).requires_grad_()
    found = loss_of(places, score_K, objective)
    strict = torch.stack([loss_of(order, score_K, objective) for order in orders(places)]).mean()
    assert_near(found, strict)
    assert_near(*(torch.autograd.grad(each, score_K)[0] for each in (found, strict)))


@pytest.mark.parametrize("places", PLACES)
def test_every_two_answers_count_alike_and_a_tie_pulls_both_ways(places: tuple[int, ...]) -> None:
    """− 1 / C(K, 2) Σ log σ(r_better − r_worse), and of a tie the mean of both: Ouyang et al. 2022, equation 1."""
    score_K = drawn(len(places))
    losses = []
    for (i, first), (j, second) in combinations(enumerate(score_K.tolist()), 2):
        share = (1 + (places[i] < places[j]) - (places[i] > places[j])) / 2
        losses.append(share * math.log1p(math.exp(second - first)) + (1 - share) * math.log1p(math.exp(first - second)))
    assert float(loss_of(places, score_K, Reward())) == pytest.approx(fmean(losses), rel=1e-5)


@pytest.mark.parametrize("places", [each for each in PLACES if len(set(each)) < len(each)])
def test_a_whole_order_is_asked_for_where_the_loss_is_of_one(places: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="needs one order of all"):
        example(places, Reward(ranking="plackett-luce"))


def test_the_whole_order_is_as_likely_as_drawing_it_answer_by_answer() -> None:
    """exp(−loss) of all orders of four answers sums to 1, and each is Π_k exp r_(k) / Σ_{j ≥ k} exp r_(j)."""
    objective, score_K = Reward(ranking="plackett-luce"), drawn(4)
    chances = []
    for order in permutations(range(4)):
        left = [score_K[order.index(place)].exp() for place in range(4)]
        by_hand = torch.stack([left[k] / torch.stack(left[k:]).sum() for k in range(4)]).prod()
        found = (-loss_of(order, score_K, objective)).exp()
        assert_near(found, by_hand)
        chances.append(found)
    assert_near(torch.stack(chances).sum(), torch.tensor(1.0))


def test_a_tie_of_two_is_a_half_whatever_the_loss() -> None:
    score_K = drawn(2)
    both = [float(loss_of(places, score_K, Reward())) for places in ((0, 1), (1, 0))]
    for ranking in ("pairs", "plackett-luce", "best-of"):
        assert float(loss_of((0, 0), score_K, Reward(ranking=ranking))) == pytest.approx(fmean(both), rel=1e-5)
