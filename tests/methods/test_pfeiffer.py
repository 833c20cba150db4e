"""Pfeiffer adapters: the formula on every family, and the residual that they read."""

from __future__ import annotations

import pytest
import torch
from methods.beside import NORM_AFTER, dense, gradients, places, reference_logprobs, sum_norm
from models.rows import batch_of
from models.tiny import NAMES, tiny_model
from models.tuned import LENGTHS, logprobs, randomize
from near import assert_apart, assert_near

from luthier.methods import Pfeiffer
from luthier.models.call import call_of_batch, calling


@pytest.mark.parametrize("name", NAMES)
def test_f_of_the_residual_sum_is_added_to_it(name: str) -> None:
    model = tiny_model(name)
    attachment = Pfeiffer(width=5, activation="gelu", scale=1.5).attach(model, "default", seed=0)
    randomize(attachment, 0.3)
    assert [len(found) for found in places(attachment).values()] == [1, 1]
    feedforward = {}
    for index, (place,) in places(attachment).items():
        f, norm = dense(attachment, place, "gelu", 1.5), sum_norm(name, index)
        feedforward[index] = lambda r, u, f=f, norm=norm: f(norm(r + u))
    expected = reference_logprobs(name, {}, feedforward)
    assert_apart(logprobs(model, None), expected)
    assert_near(logprobs(model), expected)


def test_where_norms_follow_the_sums_the_base_norm_is_used_twice() -> None:
    """Without the inner norm the answer is another."""
    model = tiny_model(NORM_AFTER)
    attachment = Pfeiffer(width=5).attach(model, "default", seed=0)
    randomize(attachment, 0.3)
    sides = {index: dense(attachment, place, "relu", 1.0) for index, (place,) in places(attachment).items()}
    unnormed = {index: (lambda r, u, f=f: f(r + u)) for index, f in sides.items()}
    assert_apart(logprobs(model), reference_logprobs(NORM_AFTER, {}, unnormed))


@pytest.mark.parametrize("name", ["llama", "olmo2", NORM_AFTER, "falcon"])
def test_no_note_outlives_a_forward_pass_or_its_backward_pass(name: str) -> None:
    model = tiny_model(name)
    randomize(Pfeiffer(width=5).attach(model, "default", seed=0))
    model.checkpoint_layers()
    batch = batch_of(LENGTHS, model.layout)
    call = call_of_batch(batch, "default", None)
    with calling(call):
        output = model.hf.get_submodule(model.anatomy.trunk)(
            input_ids=batch.tokens_BT, position_ids=batch.positions_BT, attention_mask=batch.mask_BT, use_cache=False
        )
    assert call.notes == {}
    output.last_hidden_state.sum().backward()
    assert call.notes == {}


@pytest.mark.parametrize("name", ["llama", "gemma2", NORM_AFTER, "falcon"])
def test_checkpointed_layers_give_the_same_gradients(name: str) -> None:
    kept, recomputed = (
        gradients(name, lambda m: Pfeiffer(width=5).attach(m, "default", seed=0), c) for c in (False, True)
    )
    assert all(torch.equal(one, other) for one, other in zip(kept, recomputed, strict=True))


@pytest.mark.parametrize("name", ["llama", "olmo2", NORM_AFTER, "falcon-new"])
def test_rows_with_two_adapters_of_this_kind_each_read_their_own_residual(name: str) -> None:
    model = tiny_model(name)
    randomize(Pfeiffer(width=5).attach(model, "one", seed=0), 0.3)
    randomize(Pfeiffer(width=3).attach(model, "two", seed=1), 0.2)
    batch = batch_of(LENGTHS, model.layout)
    whose = ("one", "two", None, "one")
    mixed = model.forward(batch, whose).logprob_N
    rows = torch.bucketize(batch.targets.source_N, torch.tensor([s.start for s in batch.segments[1:]]), right=True)
    for row, adapter in enumerate(whose):
        assert_near(mixed[rows == row], model.forward(batch, adapter).logprob_N[rows == row])


def test_the_count_is_that_of_the_formula() -> None:
    attachment = Pfeiffer(width=5).attach(tiny_model("llama"), "default", seed=0)
    assert attachment.num_trainable == 2 * (2 * 32 * 5 + 32 + 5)
