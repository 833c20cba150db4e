"""The rules by which updates become one."""

from __future__ import annotations

import pytest
import torch
from near import assert_near

from luthier.ops.combining import dare, linear, ties, trim
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
