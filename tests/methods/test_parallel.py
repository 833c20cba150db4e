"""Parallel adapters: the formula on every family, and threads that run side by side."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from methods.beside import NORM_AFTER, dense, gradients, places, reference_logprobs
from models.rows import batch_of
from models.tiny import NAMES, tiny_model
from models.tuned import logprobs, randomize
from near import assert_apart, assert_near

from luthier.methods import Parallel


@pytest.mark.parametrize("name", NAMES)
def test_f_of_the_residual_that_enters_the_feedforward_is_added_to_the_sum(name: str) -> None:
    model = tiny_model(name)
    attachment = Parallel(width=5, activation="gelu").attach(model, "default", seed=0)
    randomize(attachment, 0.2)
    sides = {index: dense(attachment, place, "gelu", 4.0) for index, (place,) in places(attachment).items()}
    expected = reference_logprobs(name, {}, {index: (lambda r, u, f=f: f(r)) for index, f in sides.items()})
    assert_apart(logprobs(model, None), expected)
    assert_near(logprobs(model), expected)


@pytest.mark.parametrize("name", ["llama", "olmo2", NORM_AFTER, "gpt_neox"])
def test_checkpointed_layers_give_the_same_gradients(name: str) -> None:
    kept, recomputed = (
        gradients(name, lambda m: Parallel(width=5).attach(m, "default", seed=0), c) for c in (False, True)
    )
    assert all(torch.equal(one, other) for one, other in zip(kept, recomputed, strict=True))


def test_forward_passes_in_several_threads_do_not_read_each_others_residuals() -> None:
    model = tiny_model("llama")
    randomize(Parallel(width=5).attach(model, "default", seed=0), 0.2)
    batches = [batch_of(lengths, model.layout) for lengths in ((9, 4), (5, 5, 5), (12,), (3, 8, 2))]
    alone = [model.forward(batch, "default").logprob_N.detach() for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda batch: model.forward(batch, "default").logprob_N.detach(), batches * 5))
    for index, answer in enumerate(together):
        assert_near(answer, alone[index % len(batches)], 1e-6)


def test_the_count_is_that_of_the_formula() -> None:
    attachment = Parallel(width=5).attach(tiny_model("llama"), "default", seed=0)
    assert attachment.num_trainable == 2 * (2 * 32 * 5 + 32 + 5)
