"""MAM: the two parts' own functions together, and the count."""

from __future__ import annotations

import pytest
import torch
from methods.beside import gradients
from models.tiny import PACKED, tiny_model
from models.tuned import logprobs, logprobs_behind, randomize
from near import assert_apart, assert_near
from torch import Tensor
from transformers import DynamicCache

from luthier.methods import MAM, Parallel, PrefixTuning
from luthier.types import Segment


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "opt"])
def test_with_bottlenecks_of_zero_it_is_prefix_tuning(name: str) -> None:
    model = tiny_model(name)
    expected = logprobs_behind(model, (3, 40, 7))
    prefix = PrefixTuning(num_virtual_tokens=3, init="text", text="w3 w40 w7")
    MAM(prefix=prefix, adapter=Parallel(width=5)).attach(model, "default", seed=0)
    assert_near(logprobs(model), expected)


@pytest.mark.parametrize("name", PACKED)
def test_it_is_the_parallel_adapter_over_a_cache_that_begins_with_the_prefix(name: str) -> None:
    together, beside = tiny_model(name), tiny_model(name)
    parts = {"prefix": PrefixTuning(num_virtual_tokens=2), "adapter": Parallel(width=5)}
    attachment = MAM.model_validate(parts).attach(together, "default", seed=0)
    randomize(attachment, 0.3)
    parallel = parts["adapter"].attach(beside, "default", seed=0)
    for key, tensor in parallel.trainables.items():
        tensor.data.copy_(attachment.trainables[f"adapter.{key}"])
    tokens = torch.tensor([[5, 9, 30, 4, 17]])
    expected = beside.decode(
        tokens,
        torch.arange(2, 7)[None],
        torch.ones(1, 7, dtype=torch.bool),
        cache_of(attachment.trainables["prefix.prompt_embeddings"].detach(), len(together.anatomy.layers)),
        "default",
    )
    behind = torch.cat([torch.zeros(1, 2, dtype=torch.int64), tokens], dim=1)
    found = together.prefill(
        behind, torch.arange(7)[None], (Segment(0, 7),), torch.tensor([6]), DynamicCache(), "default"
    )
    assert_near(found, expected, 2e-5)
    assert_apart(
        found, together.prefill(behind, torch.arange(7)[None], (Segment(0, 7),), torch.tensor([6]), DynamicCache())
    )


def cache_of(rows: Tensor, layers: int) -> DynamicCache:
    """A cache that holds the keys and values of a prefix (V, 2 L K E) whose heads are 8 wide."""
    states = rows.view(len(rows), layers, 2, -1, 8).permute(1, 2, 3, 0, 4)
    cache = DynamicCache()
    for index, (keys, values) in enumerate(states):
        cache.update(keys[None], values[None], index)
    return cache


def test_checkpointed_layers_give_the_same_gradients() -> None:
    method = MAM(prefix=PrefixTuning(num_virtual_tokens=2), adapter=Parallel(width=5))
    kept, recomputed = (gradients("llama", lambda m: method.attach(m, "default", seed=0), c) for c in (False, True))
    assert all(torch.equal(one, other) for one, other in zip(kept, recomputed, strict=True))


def test_the_count_is_the_sum_of_the_parts() -> None:
    method = MAM(prefix=PrefixTuning(num_virtual_tokens=3), adapter=Parallel(width=5))
    attachment = method.attach(tiny_model("llama"), "default", seed=0)
    assert attachment.num_trainable == 2 * 2 * 3 * 2 * 8 + 2 * (2 * 32 * 5 + 32 + 5)
    assert attachment.lowest_layer == 0
    assert attachment.num_virtual == 3


def test_the_papers_scale_and_length_are_the_defaults() -> None:
    assert (MAM().prefix.num_virtual_tokens, MAM().adapter.scale) == (30, 4.0)
    model = tiny_model("llama")
    before = logprobs(model, None)
    MAM(prefix=PrefixTuning(num_virtual_tokens=2)).attach(model, "default", seed=0)
    assert_apart(logprobs(model), before)
