"""Houlsby adapters: the formula on every family, the count, and where they start."""

from __future__ import annotations

import pytest
import torch
from methods.beside import dense, places, reference_logprobs
from models.tiny import NAMES, tiny_model
from models.tuned import logprobs, randomize
from near import assert_apart, assert_near
from pydantic import ValidationError
from torch import Tensor

from luthier.errors import RecipeError
from luthier.methods import Houlsby
from luthier.methods.sublayers import End


@pytest.mark.parametrize("name", NAMES)
def test_f_of_u_is_added_after_both_sublayers(name: str) -> None:
    model = tiny_model(name)
    attachment = Houlsby(width=5, activation="silu", scale=1.5).attach(model, "default", seed=0)
    randomize(attachment, 0.3)
    sides = {index: [dense(attachment, p, "silu", 1.5) for p in found] for index, found in places(attachment).items()}
    assert [len(both) for both in sides.values()] == [2, 2]
    attention = {index: (lambda r, u, f=both[0]: f(u)) for index, both in sides.items()}
    feedforward = {index: (lambda r, u, f=both[1]: f(u)) for index, both in sides.items()}
    expected = reference_logprobs(name, attention, feedforward)
    assert_apart(logprobs(model, None), expected)
    assert_near(logprobs(model), expected)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "silu"])
def test_the_bottleneck_is_its_formula_in_the_dtype_of_its_input(activation: str) -> None:
    method = Houlsby.model_validate({"width": 3, "activation": activation, "scale": 0.5})
    side = method.fresh(End("place", tiny_model("llama").anatomy.layers[0], 7, 1.0), 0, torch.device("cpu"))
    for index, tensor in enumerate(side.tensors.values()):
        tensor.data.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(index)))
    z = torch.randn(4, 7)
    down, down_bias, up, up_bias = side.tensors.values()
    functions = {
        "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
        "gelu_tanh": lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
        "relu": lambda x: x.clamp(min=0),
        "silu": lambda x: x / (1 + (-x).exp()),
    }
    expected: Tensor = 0.5 * (functions[activation](z @ down.T + down_bias) @ up.T + up_bias)
    assert_near(side(z), expected)
    half = side(z.bfloat16())
    assert half.dtype == torch.bfloat16
    assert_near(half.float(), expected, 0.03)


def test_one_sublayer_alone_can_be_chosen_and_one_layer() -> None:
    for sublayer, place in (("attention", "self_attn.o_proj"), ("feedforward", "mlp.down_proj")):
        method = Houlsby(width=4, sublayers=(sublayer,), layers=(1,))
        attachment = method.attach(tiny_model("llama"), "default", seed=0)
        assert places(attachment) == {1: [f"model.layers.1.{place}"]}
        assert attachment.lowest_layer == 1


@pytest.mark.parametrize("name", ["llama", "gpt2", "olmo2"])
def test_the_count_is_that_of_the_formula(name: str) -> None:
    attachment = Houlsby(width=5).attach(tiny_model(name), "default", seed=0)
    assert attachment.num_trainable == 4 * (2 * 32 * 5 + 32 + 5)


def test_the_count_on_the_feedforwards_of_t0_3b_is_the_published_one() -> None:
    end = End("place", tiny_model("llama").anatomy.layers[0], 2048, 1.0)
    side = Houlsby(width=64).fresh(end, 0, torch.device("cpu"))
    assert 48 * sum(tensor.numel() for tensor in side.tensors.values()) == 12_684_288


def test_downs_start_random_within_one_over_the_root_of_the_width_and_all_else_at_zero() -> None:
    tensors = Houlsby(width=50).attach(tiny_model("llama"), "default", seed=0).trainables
    for key, tensor in tensors.items():
        if key.endswith("down.weight"):
            assert 0.9 * 32**-0.5 < float(tensor.detach().abs().max()) <= 32**-0.5
        else:
            assert not bool(tensor.any())


def test_weights_decay_and_biases_do_not() -> None:
    matrices, biases = Houlsby().attach(tiny_model("llama"), "default", seed=0).groups
    assert matrices.decays
    assert not biases.decays
    assert all(key.endswith(".weight") for key in matrices.tensors)
    assert all(key.endswith(".bias") for key in biases.tensors)


def test_a_refused_merge_leaves_the_adapter_at_work() -> None:
    model = tiny_model("llama")
    attachment = Houlsby(width=4).attach(model, "default", seed=0)
    randomize(attachment, 0.3)
    before = logprobs(model)
    with pytest.raises(RecipeError) as refused:
        attachment.merge()
    assert refused.value.field == "method.kind"
    assert_near(logprobs(model), before, 1e-7)


@pytest.mark.parametrize(
    "settings",
    [{"width": 0}, {"scale": 0}, {"activation": "tanh"}, {"sublayers": ()}, {"sublayers": ("head",)}, {"dropout": 0.1}],
)
def test_values_that_make_no_adapter_are_refused_by_the_settings(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Houlsby.model_validate(settings)


@pytest.mark.parametrize("layers", [(2,), (-1,), ()])
def test_a_layer_that_is_not_there_is_refused_with_the_field(layers: tuple[int, ...]) -> None:
    with pytest.raises(RecipeError) as refused:
        Houlsby(layers=layers).attach(tiny_model("llama"), "default", seed=0)
    assert refused.value.field == "method.layers"
