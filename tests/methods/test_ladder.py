"""Ladder side-tuning: the side network's size and start, its gates, and that the base has no part in the backward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models.rows import batch_of
from models.tiny import tiny_model
from models.tuned import LENGTHS, logprobs
from near import assert_apart, assert_near

from luthier.errors import RecipeError
from luthier.methods import Ladder
from luthier.methods.ladder import LadderSide
from luthier.methods.pruning import strongest_channels
from luthier.models.language_model import LanguageModel


def laddered(name: str = "llama", **settings: Any) -> tuple[LanguageModel, LadderSide]:
    """A tiny model with a side network of half its widths."""
    model = tiny_model(name)
    Ladder(**{"reduction": 2, **settings}).attach(model, "default", seed=0)
    side = model.sides["default"]
    assert isinstance(side, LadderSide)
    return model, side


def test_the_count_is_that_of_the_blocks_the_projections_and_the_gates() -> None:
    attachment = Ladder(reduction=2).attach(tiny_model("llama"), "default", seed=0)
    d, f, kv = 16, 20, 8  # of 32, 40 and 2 key/value heads of 8
    block = (2 * d * d + 2 * d * kv + 2 * d + 2 * kv) + (3 * d * f + 2 * f + d) + 2 * d  # with biases, and two norms
    projections = 3 * (32 * d + d) + (d * 32 + 32)
    assert attachment.num_trainable == 2 * block + d + projections + 2 + 1


def test_the_gates_begin_halfway_and_an_open_last_gate_gives_the_side_alone() -> None:
    model, side = laddered()
    assert_near(torch.sigmoid(side.rungs / 0.1), torch.full((2,), 0.5))
    assert_near(logprobs(model), logprobs(model, None), 1e-6)
    side.gate.data.fill_(1.0)
    assert_apart(logprobs(model), logprobs(model, None))


def test_the_pruned_start_keeps_the_strongest_channels_and_the_frequencies_of_the_heads() -> None:
    model, side = laddered()
    channels = strongest_channels(model, 16)
    table = model.hf.get_submodule(model.anatomy.embedding).get_parameter("weight").abs().sum(0)
    assert float(table[channels].min()) >= float(table[[i for i in range(32) if i not in channels]].max())
    for name in ("q_proj", "k_proj"):
        own = side.small.get_submodule(f"model.layers.1.self_attn.{name}").get_parameter("weight")
        base = model.hf.get_submodule(f"model.layers.1.self_attn.{name}").get_parameter("weight")
        assert torch.equal(own, base[::2][:, channels])
    output = side.small.get_submodule("model.layers.0.self_attn.o_proj").get_parameter("weight")
    base = model.hf.get_submodule("model.layers.0.self_attn.o_proj").get_parameter("weight")
    assert torch.equal(output, base[channels][:, ::2])
    frequencies = [dict(m.named_buffers())["model.rotary_emb.inv_freq"] for m in (side.small, model.hf)]
    assert_near(frequencies[0], frequencies[1][::2])


def test_the_random_start_is_another() -> None:
    _, pruned = laddered()
    _, random = laddered(start="random")
    name = "model.layers.0.mlp.up_proj.weight"
    assert_apart(random.small.get_parameter(name), pruned.small.get_parameter(name))


def test_every_so_many_layers_have_a_rung_and_the_last_one_always() -> None:
    _, side = laddered(every=2)
    assert len(side.rungs) == 1
    assert side._kept == (1,)


def test_nothing_of_the_base_has_a_graph() -> None:
    model, side = laddered()
    side.gate.data.fill_(0.5)
    graphs: list[bool] = []
    for layer in model.anatomy.layers:
        module = model.hf.get_submodule(layer.name)
        module.register_forward_hook(lambda m, a, out: graphs.append(out.requires_grad or torch.is_grad_enabled()))
    loss = model.forward(batch_of(LENGTHS, model.layout), "default").logprob_N.sum()
    assert loss.requires_grad
    assert graphs == [False, False]


def test_widths_that_do_not_divide_are_refused_with_the_field() -> None:
    with pytest.raises(RecipeError) as caught:
        Ladder(reduction=3).attach(tiny_model("llama"), "default", seed=0)
    assert caught.value.field == "method.reduction"
    assert "hidden_size 32" in caught.value.found
