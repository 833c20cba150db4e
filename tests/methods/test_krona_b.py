"""KronA^B: the product beside a whole feed-forward block, with and without the residual."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models.rows import batch_of, plain_logprobs, random_rows
from models.tiny import plain_model, tiny_model
from models.tuned import LENGTHS, logprobs, plain_attention, quiet, randomize
from near import assert_all_near, assert_near
from torch import Tensor, nn

from luthier.errors import RecipeError
from luthier.methods import KronAB
from luthier.models.call import call_of_batch, calling


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "gpt_neox", "phi3", "falcon", "falcon-new"])
def test_the_block_gives_what_it_gave_and_the_product_with_its_input(name: str, residual: bool) -> None:
    model = tiny_model(name)
    attachment = KronAB(scale=2.5, residual=residual).attach(model, "default", seed=0)
    randomize(attachment, 0.3)
    tensors = {key: tensor.detach() for key, tensor in attachment.trainables.items()}
    plain = plain_model(name, plain_attention(name))
    for layer in model.anatomy.layers:
        place = layer.roles["down"]
        product = 2.5 * torch.kron(tensors[f"{place}.krona_a"], tensors[f"{place}.krona_b"])
        rest = tensors[f"{place}.krona_residual"] if residual else torch.zeros(1)
        hook = beside(product + rest * torch.eye(32))
        plain.get_submodule(layer.feedforward).register_forward_hook(hook)
    assert_near(logprobs(model), plain_logprobs(plain, random_rows(LENGTHS)))


def beside(product: Tensor) -> Any:
    """A hook that adds the product with a module's input to its output."""

    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + F.linear(inputs[0], product)

    return hook


def test_where_the_block_is_two_layers_of_the_transformer_layer_it_begins_at_the_first() -> None:
    model = tiny_model("opt")
    attachment = KronAB().attach(model, "default", seed=0)
    randomize(attachment, 0.3)
    tensors = {key: tensor.detach() for key, tensor in attachment.trainables.items()}
    plain, seen = plain_model("opt"), {}
    for layer in model.anatomy.layers:
        place = layer.roles["down"]
        product = torch.kron(tensors[f"{place}.krona_a"], tensors[f"{place}.krona_b"])

        def look(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, place: str = place) -> None:
            seen[place] = inputs[0]

        def add(_: nn.Module, inputs: Any, output: Tensor, place: str = place, product: Tensor = product) -> Tensor:
            return output + F.linear(seen[place], product)

        plain.get_submodule(layer.roles["up"]).register_forward_hook(look)
        plain.get_submodule(place).register_forward_hook(add)
    assert_near(logprobs(model), plain_logprobs(plain, random_rows(LENGTHS)))


def test_the_count_is_that_of_the_factors_and_one_for_the_residual() -> None:
    for residual in (False, True):
        attachment = KronAB(residual=residual).attach(tiny_model("llama"), "default", seed=0)
        assert attachment.num_trainable == 2 * (4 * 4 + 8 * 8 + residual)


def test_at_the_start_the_inner_factor_and_the_residual_are_zero_and_they_alone_have_gradients() -> None:
    model = tiny_model("llama")
    attachment = KronAB(residual=True).attach(model, "default", seed=0)
    loss = model.forward(batch_of(LENGTHS, model.layout), "default").logprob_N.sum()
    tensors = attachment.trainables
    for (name, tensor), grad in zip(tensors.items(), torch.autograd.grad(loss, list(tensors.values())), strict=True):
        assert bool(tensor.any()) == name.endswith("krona_a")
        assert bool(grad.any()) != name.endswith("krona_a")


def test_layers_that_are_computed_again_have_the_same_gradients() -> None:
    found = []
    for recomputes in (False, True):
        model = tiny_model("llama")
        attachment = KronAB(residual=True).attach(model, "default", seed=0)
        randomize(attachment, 0.3)
        if recomputes:
            model.checkpoint_layers()
        loss = model.forward(batch_of(LENGTHS, model.layout), "default").logprob_N.sum()
        found.append(torch.autograd.grad(loss, list(attachment.trainables.values())))
    assert_all_near(found[0], found[1])


def test_nothing_is_left_noted_after_a_pass() -> None:
    model = tiny_model("llama")
    KronAB().attach(model, "default", seed=0)
    batch = batch_of(LENGTHS, model.layout)
    call = call_of_batch(batch, ("default", None, "default", "default"), None)
    with calling(call):
        model.hf.get_submodule(model.anatomy.trunk)(
            input_ids=batch.tokens_BT, position_ids=batch.positions_BT, attention_mask=batch.mask_BT, use_cache=False
        )
    assert call.notes == {}


def test_only_the_chosen_layers_have_a_product_and_a_file_says_which(tmp_path: Path) -> None:
    model = tiny_model("llama")
    attachment = KronAB(layers=(1,), scale=3.0).attach(model, "default", seed=0)
    assert attachment.lowest_layer == 1
    randomize(attachment, 0.3)
    attachment.write(tmp_path, quiet)
    fresh = tiny_model("llama")
    again = KronAB(begin_from=str(tmp_path), layers=(1,)).attach(fresh, "default", seed=0)
    assert list(again.trainables) == list(attachment.trainables)
    assert_near(logprobs(fresh), logprobs(model), 1e-7)
    with pytest.raises(RecipeError) as refused:
        KronAB(begin_from=str(tmp_path), layers=(0,)).attach(tiny_model("llama"), "default", seed=0)
    assert refused.value.field == "method.layers"


def test_it_is_not_merged_and_stays_at_work_when_that_is_refused() -> None:
    model = tiny_model("llama")
    attachment = KronAB().attach(model, "default", seed=0)
    randomize(attachment, 0.3)
    before = logprobs(model)
    with pytest.raises(RecipeError, match="merge"):
        attachment.merge()
    assert torch.equal(logprobs(model), before)


@pytest.mark.parametrize("layers", [(), (2,)])
def test_no_layer_or_one_that_is_not_there_is_refused_with_the_field(layers: tuple[int, ...]) -> None:
    with pytest.raises(RecipeError) as refused:
        KronAB(layers=layers).attach(tiny_model("llama"), "default", seed=0)
    assert refused.value.field == "method.layers"
