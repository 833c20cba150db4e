"""What is made once and kept, and that what pretends is kept apart."""

from __future__ import annotations

import torch

from luthier.ops.kept import kept, kept_apart


def test_results_are_made_once_and_apart_anew() -> None:
    made: list[int] = []

    @kept(1)
    def double(number: int) -> list[int]:
        made.append(number)
        return [2 * number]

    first = double(3)
    assert double(3) is first
    with kept_apart():
        other = double(3)
        assert other == first
        assert other is not first
        assert double(3) is other
        assert double(4) == [8]
        assert double(3) is other, "apart all are kept"
    assert double(3) is first
    with kept_apart():
        assert double(3) is not other
    assert made == [3, 3, 4, 3]
    double(5)
    assert double(3) is not first, "of one result the latest is kept"


def test_what_an_evaluation_had_made_serves_a_backward_pass() -> None:
    @kept()
    def places(count: int) -> torch.Tensor:
        return torch.arange(count)

    with torch.inference_mode():
        places(3)
    weight = torch.ones(3, requires_grad=True)
    weight.index_select(0, places(3)).sum().backward()
    assert weight.grad is not None
