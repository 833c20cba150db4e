"""AttentionFusion-style: the shares, its limits, and that the base has no part in the backward pass."""

from __future__ import annotations

import pytest
import torch
from models.rows import batch_of
from models.tiny import tiny_model
from models.tuned import LENGTHS, logprobs
from near import assert_near

from luthier.errors import RecipeError
from luthier.methods import AttentionFusion
from luthier.methods.attention_fusion import FusionSide
from luthier.models.language_model import LanguageModel


def fused(name: str = "llama") -> tuple[LanguageModel, FusionSide]:
    """A tiny model with the method at work."""
    model = tiny_model(name)
    AttentionFusion(query_std=0.5).attach(model, "default", seed=0)
    side = model.sides["default"]
    assert isinstance(side, FusionSide)
    return model, side


def test_the_count_is_the_width_and_a_number_a_state_and_the_gate() -> None:
    attachment = AttentionFusion().attach(tiny_model("llama"), "default", seed=0)
    assert attachment.num_trainable == 32 + 3 + 1


def test_a_tokens_shares_are_the_softmax_of_the_formula_and_sum_to_one() -> None:
    _, side = fused()
    states = torch.randn(3, 1, 4, 32, generator=torch.Generator().manual_seed(0))
    side.layer_bias.data.copy_(torch.tensor([0.3, -0.2, 0.1]))
    shares = side.shares(states)
    assert_near(shares.sum(0), torch.ones(1, 4))
    normal = states / (states.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    scores = normal @ side.query / 32**0.5 + side.layer_bias.view(3, 1, 1)
    assert_near(shares, torch.softmax(scores, 0))


@pytest.mark.parametrize("layer", [1, 2])
def test_a_one_hot_bias_with_the_gate_open_gives_that_layers_state(layer: int) -> None:
    model, side = fused()
    side.gate.data.fill_(1.0)
    side.layer_bias.data[layer] = 1e4
    batch = batch_of(LENGTHS, model.layout)
    tapped: dict[int, torch.Tensor] = {}
    shallow = model.hf.get_submodule(model.anatomy.layers[layer - 1].name)
    handle = shallow.register_forward_hook(lambda m, a, out: tapped.update({layer: out}))
    model.hidden(batch)
    handle.remove()
    assert_near(model.hidden(batch, "default"), model.final_norm(tapped[layer]), 1e-5)


def test_with_the_gate_closed_it_is_the_base_whatever_the_query() -> None:
    model, side = fused()
    side.query.data.normal_(generator=torch.Generator().manual_seed(3))
    assert_near(logprobs(model), logprobs(model, None), 1e-6)


def test_a_model_that_projects_at_its_ends_is_refused() -> None:
    with pytest.raises(RecipeError, match="width 32 and its embedding 16") as caught:
        fused("opt-norm-after")
    assert caught.value.mend


def test_nothing_of_the_base_has_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = fused()
    graphs: list[bool] = []
    for layer in model.anatomy.layers:
        module = model.hf.get_submodule(layer.name)
        module.register_forward_hook(lambda m, a, out: graphs.append(out.requires_grad or torch.is_grad_enabled()))
    loss = model.forward(batch_of(LENGTHS, model.layout), "default").logprob_N.sum()
    assert loss.requires_grad
    assert graphs == [False, False]
