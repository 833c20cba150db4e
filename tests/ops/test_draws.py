"""Random draws are hashes of their address: uniform, and blind to order, neighbours and number of calls."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from luthier.ops.draws import keep_mask, mix, salt_of, token_keys, uniforms


def document_keys(document: int, length: int, *, seed: int = 1, step: int = 2) -> Tensor:
    """The keys of one document's tokens."""
    return token_keys(seed, step, torch.full((length,), document), torch.arange(length))


@pytest.mark.parametrize("drop", [0.05, 0.5, 0.9])
def test_the_share_that_is_kept_is_one_minus_the_drop_rate(drop: float) -> None:
    kept = keep_mask(document_keys(3, 500), salt_of("a"), 400, drop).double()
    deviation = math.sqrt(drop * (1 - drop))
    assert abs(float(kept.mean()) - (1 - drop)) < 4 * deviation / math.sqrt(kept.numel())
    # every token and every column alone has that rate too: none is always kept or always dropped
    assert float((kept.mean(1) - (1 - drop)).abs().max()) < 5 * deviation / math.sqrt(400)
    assert float((kept.mean(0) - (1 - drop)).abs().max()) < 5 * deviation / math.sqrt(500)


def test_neighbouring_tokens_columns_and_places_are_uncorrelated() -> None:
    first = keep_mask(document_keys(0, 400), salt_of("q_proj"), 256, 0.5).double() - 0.5
    other = keep_mask(document_keys(0, 400), salt_of("k_proj"), 256, 0.5).double() - 0.5
    for one, two in ((first[1:], first[:-1]), (first[:, 1:], first[:, :-1]), (first, other)):
        assert abs(float((one * two).mean())) < 0.25 * 4 / math.sqrt(one.numel())


def test_a_token_draws_the_same_wherever_its_document_stands_in_the_batch() -> None:
    one, two = document_keys(7, 5), document_keys(9, 8)
    apart = [keep_mask(keys, 1, 16, 0.5) for keys in (one, two)]
    together = keep_mask(torch.cat([two, one]), 1, 16, 0.5)
    assert torch.equal(together, torch.cat([apart[1], apart[0]]))


def test_a_longer_document_or_a_wider_layer_leaves_the_first_draws_as_they_were() -> None:
    assert torch.equal(keep_mask(document_keys(7, 9), 1, 16, 0.5)[:5], keep_mask(document_keys(7, 5), 1, 16, 0.5))
    assert torch.equal(keep_mask(document_keys(7, 5), 1, 20, 0.5)[:, :16], keep_mask(document_keys(7, 5), 1, 16, 0.5))


def test_another_seed_step_document_position_or_place_draws_otherwise() -> None:
    masks = [
        keep_mask(document_keys(7, 4), salt_of("a"), 64, 0.5),
        keep_mask(document_keys(7, 4, seed=3), salt_of("a"), 64, 0.5),
        keep_mask(document_keys(7, 4, step=3), salt_of("a"), 64, 0.5),
        keep_mask(document_keys(8, 4), salt_of("a"), 64, 0.5),
        keep_mask(document_keys(7, 4), salt_of("b"), 64, 0.5),
        keep_mask(document_keys(7, 5)[1:], salt_of("a"), 64, 0.5),
    ]
    for i, one in enumerate(masks):
        for other in masks[:i]:
            share = float((one == other).double().mean())
            assert 0.3 < share < 0.7, "two different addresses agree as often as chance does"


def test_swapping_seed_and_step_or_document_and_position_gives_other_keys() -> None:
    assert not torch.equal(document_keys(0, 4, seed=1, step=2), document_keys(0, 4, seed=2, step=1))
    documents, positions = torch.tensor([2, 5]), torch.tensor([5, 2])
    first, second = token_keys(0, 1, documents, positions).tolist()
    assert first != second


def test_keys_of_many_addresses_do_not_collide() -> None:
    documents = torch.arange(200).repeat_interleave(200)
    keys = [token_keys(seed, step, documents, torch.arange(200).repeat(200)) for seed in (0, 1) for step in (1, 2)]
    assert torch.cat(keys).unique().numel() == 4 * 200 * 200


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_the_largest_and_the_smallest_seed_are_taken(seed: int) -> None:
    assert document_keys(0, 3, seed=seed).dtype == torch.int64


def test_mix_is_one_to_one_and_salts_do_not_depend_on_the_process() -> None:
    values = torch.cat([torch.arange(-5000, 5000), torch.tensor([2**63 - 1, -(2**63)])])
    assert mix(values).unique().numel() == len(values)
    assert salt_of("model.layers.0.self_attn.q_proj") == salt_of("model.layers.0.self_attn.q_proj")
    assert -(2**63) <= salt_of("x") < 2**63
    assert len({salt_of(str(i)) for i in range(1000)}) == 1000


def test_uniform_numbers_of_a_pass_fill_the_unit_interval_and_depend_on_all_of_its_address() -> None:
    drawn = uniforms(4000, seed=1, step=2, salt=3)
    assert drawn.dtype == torch.float64
    assert 0 < float(drawn.min()) < 0.01
    assert 0.99 < float(drawn.max()) < 1
    sorted_gap = (drawn.sort().values - (torch.arange(4000) + 0.5) / 4000).abs().max()
    assert float(sorted_gap) < 1.95 / math.sqrt(4000)  # Kolmogorov and Smirnov, one in a thousand
    assert torch.equal(uniforms(4000, seed=1, step=2, salt=3)[:10], uniforms(10, seed=1, step=2, salt=3))
    for other in (uniforms(4000, 2, 2, 3), uniforms(4000, 1, 3, 3), uniforms(4000, 1, 2, 4)):
        assert abs(float(((other - 0.5) * (drawn - 0.5)).mean()) * 12) < 4 / math.sqrt(4000)
