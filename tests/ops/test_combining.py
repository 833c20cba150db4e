"""The rules by which updates become one."""

from __future__ import annotations

import pytest
import torch
from near import assert_near
from peft.utils import merge_utils

from luthier.ops.combining import dare, linear, prune, slerp, ties, trim
from luthier.ops.spectrum import Factors


def test_the_linear_sum_of_products_is_exact_and_of_the_sum_of_the_ranks() -> None:
    draw = torch.Generator().manual_seed(0)
    updates = [Factors(torch.randn(6, r, generator=draw), torch.randn(r, 4, generator=draw)) for r in (1, 2)]
    combined = linear(updates, [0.5, -2.0])
    assert combined.left_OR.shape[1] == 3
    assert_near(combined.dense(), 0.5 * updates[0].dense() - 2 * updates[1].dense())


def test_trimming_keeps_the_largest_magnitudes() -> None:
    x = torch.tensor([[3.0, -5.0, 0.1], [-0.2, 4.0, -1.0]])
    assert trim(x, 0.5).tolist() == [[3.0, -5.0, 0.0], [0.0, 4.0, 0.0]]
    assert torch.equal(trim(x, 1.0), x)
    assert int((trim(x, 1e-6) != 0).sum()) == 1


def test_ties_takes_the_sign_of_the_greater_sum_and_averages_what_agrees() -> None:
    updates = torch.tensor([[[2.0, 1.0, 5.0]], [[4.0, -3.0, 0.0]], [[-1.0, 1.0, 0.0]]])
    # signs of the sums 5, −1, 5; agreeing entries 2 and 4, −3, 5
    assert_near(ties(updates, 1.0), torch.tensor([[3.0, -3.0, 5.0]]))


def test_ties_of_one_whole_update_is_that_update() -> None:
    x = torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(1))
    assert_near(ties(x, 1.0), x[0])


def test_dare_drops_entries_and_keeps_the_expected_sum() -> None:
    updates = torch.stack([torch.full((200, 100), 2.0), torch.full((200, 100), -0.5)])
    combined = dare(updates, 0.25, torch.Generator().manual_seed(2))
    assert float(combined.mean()) == pytest.approx(1.5, abs=0.1)
    assert set(combined.unique().tolist()) == {0.0, 8.0, -2.0, 6.0}
    assert_near(dare(updates, 1.0, torch.Generator()), updates.sum(0))


def drawn(count: int = 3) -> torch.Tensor:
    """Updates (M, O, I) of normal numbers."""
    return torch.randn(count, 20, 30, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_ties_is_that_of_peft(density: float) -> None:
    updates_MOI = drawn()
    assert_near(ties(updates_MOI, density), merge_utils.ties(list(updates_MOI), torch.ones(3), density))


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_pruning_is_that_of_peft_with_weights_that_enter_before_or_after(density: float) -> None:
    updates_MOI, weights_M = drawn(), torch.tensor([0.5, 2.0, 1.0])
    theirs = merge_utils.magnitude_prune(list(updates_MOI), weights_M, density)
    assert_near(prune(weights_M[:, None, None] * updates_MOI, density), theirs)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_dare_is_that_of_peft_with_the_same_draws(density: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """peft draws with torch's own generator, one update after another; here both are given the same uniform numbers."""
    updates_MOI, weights_M = drawn(), torch.tensor([0.5, 2.0, 1.0])
    ours = dare(weights_M[:, None, None] * updates_MOI, density, torch.Generator().manual_seed(4))
    draw = torch.Generator().manual_seed(4)
    monkeypatch.setattr(torch, "bernoulli", lambda p: (torch.rand(p.shape, generator=draw) < p).to(p.dtype))
    assert_near(ours, merge_utils.dare_linear(list(updates_MOI), weights_M, density))


@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 0.8, 1.0])
def test_slerp_turns_the_one_weight_toward_the_other_by_the_share_of_their_angle(t: float) -> None:
    """exp(t Ω (w uᵀ − u wᵀ)) u with u and w the axes of the plane of both; weights of other lengths keep what theirs give to it."""
    draw = torch.Generator().manual_seed(5)
    u_D, v_D = (x / x.norm() for x in torch.randn(2, 6, generator=draw, dtype=torch.float64))
    w_D = v_D - (v_D @ u_D) * u_D
    angle = torch.atan2(w_D.norm(), v_D @ u_D)
    w_D = w_D / w_D.norm()
    turn_DD = torch.matrix_exp(t * angle * (torch.outer(w_D, u_D) - torch.outer(u_D, w_D)))
    turned_D = turn_DD @ u_D
    assert_near(slerp(u_D, v_D, t), turned_D, 1e-12)
    of_u, of_v = torch.linalg.lstsq(torch.stack([u_D, v_D], dim=1), turned_D[:, None]).solution.flatten()
    long = slerp((3.0 * u_D).view(2, 3), (0.5 * v_D).view(2, 3), t)
    assert_near(long, (3.0 * of_u * u_D + 0.5 * of_v * v_D).view(2, 3), 1e-12)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp_between_weights_that_point_alike_or_against_each_other_is_the_line(t: float) -> None:
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(6))
    for other in (2 * x, -x, torch.zeros(2, 3)):
        assert_near(slerp(x, other, t), (1 - t) * x + t * other, 1e-6)


def test_ties_gives_an_entry_whose_sum_is_zero_no_sign() -> None:
    assert ties(torch.tensor([[[2.0]], [[-2.0]]]), 1.0).tolist() == [[0.0]]
