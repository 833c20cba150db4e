"""Supervised fine-tuning: which positions are targets, and what their loss is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier.objectives import SFT
from luthier.types import Origin, Rendered, Targets

ORIGIN = Origin("rows.jsonl", 4)


def rendered(weights: list[float]) -> Rendered:
    """Tokens 10, 11, … with such weights."""
    tokens = np.arange(10, 10 + len(weights), dtype=np.int64)
    return Rendered(tokens, np.array(weights, dtype=np.float32))


def targets_of(weights: list[float]) -> Targets:
    """Targets with such weights."""
    count = torch.arange(len(weights))
    return Targets(count, count, torch.tensor(weights), torch.zeros_like(count))


def test_each_learned_token_is_a_target_at_the_position_before_it() -> None:
    example = SFT().example(rendered([0, 0, 1, 0.5, 0, 2]), document=7, origin=ORIGIN)
    assert example.source_N.tolist() == [1, 2, 4]
    assert example.token_N.tolist() == [12, 13, 15]
    assert example.weight_N.tolist() == [1, 0.5, 2]
    assert example.sample_N.tolist() == [0, 0, 0]
    assert (example.document, example.origin) == (7, ORIGIN)
    assert example.parts[0].tokens_T.tolist() == [10, 11, 12, 13, 14, 15]
    assert (example.parts[0].parent, example.parts[0].causal, len(example.parts)) == (None, True, 1)


def test_the_first_token_is_never_a_target_because_nothing_stands_before_it() -> None:
    example = SFT().example(rendered([1, 1]), document=0, origin=ORIGIN)
    assert example.source_N.tolist() == [0]
    assert example.token_N.tolist() == [11]


@pytest.mark.parametrize("weights", [[], [1.0], [0.0, 0.0, 0.0]])
def test_a_row_that_teaches_nothing_has_no_targets(weights: list[float]) -> None:
    example = SFT().example(rendered(weights), document=0, origin=ORIGIN)
    assert example.num_learned == 0
    assert example.num_tokens == len(weights)
    assert example.weight_N.dtype == np.float32


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), max_size=12))
def test_every_positive_weight_after_the_first_becomes_exactly_one_target(weights: list[float]) -> None:
    example = SFT().example(rendered(weights), document=0, origin=ORIGIN)
    assert [(s + 1, w) for s, w in zip(example.source_N.tolist(), example.weight_N.tolist(), strict=True)] == [
        (t, w) for t, w in enumerate(weights) if t > 0 and w > 0
    ]
    assert all(example.parts[0].tokens_T[s + 1] == y for s, y in zip(example.source_N, example.token_N, strict=True))


def test_the_loss_is_the_weighted_sum_of_negative_log_likelihoods() -> None:
    logprob_N = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    loss = SFT().loss_sum(logprob_N, targets_of([1.0, 0.5, 2.0]))
    assert loss.item() == pytest.approx(3.0)
    assert torch.autograd.grad(loss, logprob_N)[0].tolist() == [-1.0, -0.5, -2.0]


def test_sums_over_parts_of_a_batch_add_up_to_the_whole() -> None:
    logprob_N = torch.randn(9)
    weights = torch.rand(9).tolist()
    whole = SFT().loss_sum(logprob_N, targets_of(weights))
    parts = [SFT().loss_sum(logprob_N[a:b], targets_of(weights[a:b])) for a, b in ((0, 4), (4, 4), (4, 9))]
    torch.testing.assert_close(sum(parts), whole)
