"""Top layers: which layers train, and that nothing below them takes part in the backward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models.rows import batch_of
from models.tiny import CONFIGS, tiny_model
from models.tuned import LENGTHS
from near import assert_near
from torch import nn

from luthier.errors import RecipeError
from luthier.methods import Full, TopLayers
from luthier.models.language_model import LanguageModel


@pytest.fixture(autouse=True)
def deep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of nine layers, with an untied and with a tied head."""
    for name, key in (("mistral", "num_hidden_layers"), ("gpt2", "n_layer"), ("falcon", "num_hidden_layers")):
        model_type, values = CONFIGS[name]
        monkeypatch.setitem(CONFIGS, f"{name}-deep", (model_type, {**values, key: 9}))


def layers_with_a_graph(model: LanguageModel) -> list[int]:
    """The layers whose output carries a graph in a forward pass."""
    found = []

    def note(index: int) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            hidden = output if isinstance(output, torch.Tensor) else output[0]
            if hidden.requires_grad:
                found.append(index)

        return hook

    for layer in model.anatomy.layers:
        model.hf.get_submodule(layer.name).register_forward_hook(note(layer.index))
    model.forward(batch_of(LENGTHS, model.layout)).logprob_N.sum().backward()
    return found


@pytest.mark.parametrize("name", ["mistral-deep", "gpt2-deep", "falcon-deep"])
@pytest.mark.parametrize("num_layers", [None, 1, 4, 9])
def test_nothing_below_the_last_layers_carries_a_graph(name: str, num_layers: int | None) -> None:
    model = tiny_model(name)
    attachment = TopLayers(num_layers=num_layers).attach(model, "default", seed=0)
    lowest = 9 - (2 if num_layers is None else num_layers)
    assert attachment.lowest_layer == lowest
    assert layers_with_a_graph(model) == list(range(lowest, 9))
    gradients = {key for key, parameter in model.hf.named_parameters() if parameter.grad is not None}
    assert gradients == set(attachment.trainables)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({}, ("model.layers.7.", "model.layers.8.", "model.norm.", "lm_head.")),
        ({"include_head": False}, ("model.layers.7.", "model.layers.8.", "model.norm.")),
        ({"num_layers": 1, "include_final_norm": False}, ("model.layers.8.", "lm_head.")),
    ],
)
def test_the_last_layers_train_and_what_is_included_with_them(settings: dict[str, Any], parts: tuple[str, ...]) -> None:
    model = tiny_model("mistral-deep")
    attachment = TopLayers(**settings).attach(model, "default", seed=0)
    chosen = {key: p for key, p in model.hf.named_parameters() if key.startswith(parts)}
    assert set(attachment.trainables) == set(chosen)
    assert attachment.num_trainable == sum(parameter.numel() for parameter in chosen.values())


def test_the_gradients_are_those_of_full_tuning_of_the_same_layers() -> None:
    found = []
    for method in (TopLayers(num_layers=1), Full(layers=(1,), train_head=True)):
        model = tiny_model("mistral")
        trained = method.attach(model, "default", seed=0).trainables
        loss = model.forward(batch_of(LENGTHS, model.layout)).logprob_N.sum()
        found.append(dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True)))
    assert set(found[0]) == set(found[1])
    for key, gradient in found[0].items():
        assert_near(gradient, found[1][key])


def test_a_tied_head_stays_frozen_and_asking_for_it_is_refused() -> None:
    attachment = TopLayers().attach(tiny_model("gpt2-deep"), "default", seed=0)
    assert not any("wte" in key or "lm_head" in key for key in attachment.trainables)
    with pytest.raises(RecipeError) as refused:
        TopLayers(include_head=True).attach(tiny_model("gpt2-deep"), "default", seed=0)
    assert refused.value.field == "method.include_head"
    assert "false" in refused.value.mend


def test_a_model_without_a_final_norm_trains_its_layers_alone() -> None:
    attachment = TopLayers(include_head=False).attach(tiny_model("opt-norm-after"), "default", seed=0)
    assert {key.split("layers.")[1][0] for key in attachment.trainables} == {"1"}


def test_more_layers_than_there_are_is_refused_with_the_field() -> None:
    with pytest.raises(RecipeError) as refused:
        TopLayers(num_layers=3).attach(tiny_model("mistral"), "default", seed=0)
    assert refused.value.field == "method.num_layers"
    assert "2" in refused.value.mend
