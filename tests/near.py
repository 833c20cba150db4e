"""What it means for two tensors to be the same up to rounding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def assert_near(actual: Tensor, expected: Tensor, share: float = 1e-5) -> None:
    """Fail unless every difference is at most `share` of the largest magnitude compared."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} against {tuple(expected.shape)}"
    if expected.numel() == 0:
        return
    assert bool(torch.isfinite(actual).all()), "something is NaN or infinite"
    actual, expected = actual.detach().double(), expected.detach().double()
    largest = float(expected.abs().max())
    worst = float((actual - expected).abs().max())
    assert worst <= share * largest, (
        f"differs by {worst:.3g}, {worst / max(largest, 1e-300):.3g} of the largest magnitude"
    )


def assert_all_near(
    actual: Sequence[Tensor | None] | Mapping[str, Tensor],
    expected: Sequence[Tensor | None] | Mapping[str, Tensor],
    share: float = 1e-5,
) -> None:
    """`assert_near` over matching tensors, each against its own largest magnitude; None matches only None."""
    if isinstance(expected, Mapping):
        assert isinstance(actual, Mapping)
        assert set(actual) == set(expected)
        actual, expected = [actual[name] for name in expected], list(expected.values())
    assert not isinstance(actual, Mapping)
    for one, other in zip(actual, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert_near(one, other, share)


def assert_apart(one: Tensor, other: Tensor, by: float = 1e-3) -> None:
    """Fail unless some entry differs by more than `by`."""
    worst = float((one.detach() - other.detach()).abs().max())
    assert worst > by, f"differs by {worst:.3g} only"
