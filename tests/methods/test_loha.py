"""LoHa: the entrywise product, its start, its count, and peft's files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from methods.beside_peft import WARNINGS, read_by_peft, read_here, written_by_peft, written_here
from models.rows import batch_of
from models.tiny import plain_model, tiny_model
from models.tuned import LENGTHS, randomize
from near import assert_near
from peft import LoHaConfig
from pydantic import ValidationError

from luthier.errors import RecipeError
from luthier.methods import LoHa

pytestmark = WARNINGS


def test_the_update_is_alpha_over_rank_times_the_products_entry_by_entry() -> None:
    for name in ("llama", "gpt2"):
        model = tiny_model(name)
        target = model.anatomy.linears[0]
        attachment = LoHa(rank=3, alpha=5, targets=(target,)).attach(model, "default", seed=0)
        randomize(attachment, 1.0)
        b1, a1, b2, a2 = (tensor.detach() for tensor in attachment.trainables.values())
        attachment.merge()
        before = plain_model(name).get_submodule(target).weight
        update = model.hf.get_submodule(target).weight - before
        assert_near(update.t() if name == "gpt2" else update, 5 / 3 * (b1 @ a1) * (b2 @ a2))


def test_fast_and_plain_agree_in_value_and_gradients() -> None:
    found = []
    for fast in (True, False):
        model = tiny_model("llama")
        attachment = LoHa(rank=3, alpha=5).attach(model, "default", seed=0, fast=fast)
        randomize(attachment, 0.5)
        logprob_N = model.forward(batch_of(LENGTHS, model.layout), "default").logprob_N
        found.append((logprob_N, torch.autograd.grad(logprob_N.sum(), list(attachment.trainables.values()))))
    assert_near(found[0][0], found[1][0])
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert_near(one, other)


def test_at_the_start_one_factor_is_zero_and_it_alone_has_a_gradient() -> None:
    model = tiny_model("llama")
    attachment = LoHa(rank=2).attach(model, "default", seed=0)
    loss = model.forward(batch_of(LENGTHS, model.layout), "default").logprob_N.sum()
    tensors = attachment.trainables
    for (name, tensor), grad in zip(tensors.items(), torch.autograd.grad(loss, list(tensors.values())), strict=True):
        is_last = name.endswith("hada_w2_b")
        assert bool(tensor.any()) != is_last
        assert bool(grad.any()) == is_last


def test_the_count_is_twice_that_of_a_lora() -> None:
    attachment = LoHa(rank=4, targets=("q_proj", "v_proj")).attach(tiny_model("llama"), "default", seed=0)
    assert attachment.num_trainable == 2 * 2 * 4 * ((32 + 32) + (32 + 16)) == 1792


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "phi3"])
def test_peft_computes_the_same_from_a_written_adapter(name: str, tmp_path: Path) -> None:
    expected = written_here(LoHa(rank=3, alpha=5), name, tmp_path, size=0.4)
    assert_near(read_by_peft(tmp_path, name), expected)


@pytest.mark.parametrize(
    "config",
    [
        {"r": 4, "alpha": 7, "target_modules": "all-linear"},
        {"r": 2, "alpha": 2, "target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
        {"r": 2, "rank_dropout": 0.2, "module_dropout": 0.1, "target_modules": ["q_proj"]},
    ],
)
def test_an_adapter_of_peft_computes_the_same_here(config: dict[str, object], tmp_path: Path) -> None:
    expected = written_by_peft(LoHaConfig(task_type="CAUSAL_LM", **config), "llama", tmp_path, size=0.4)
    assert_near(read_here(LoHa, tmp_path, "llama"), expected)


def test_ranks_by_pattern_are_refused_rather_than_half_read(tmp_path: Path) -> None:
    config = LoHaConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "k_proj"], rank_pattern={"k_proj": 3})
    written_by_peft(config, "llama", tmp_path)
    with pytest.raises(RecipeError) as refused:
        LoHa(begin_from=str(tmp_path)).attach(tiny_model("llama"), "default", seed=0)
    assert refused.value.field == "rank_pattern"
    assert refused.value.mend


def test_an_embedding_is_refused_and_impossible_values_too() -> None:
    with pytest.raises(RecipeError, match="embedding") as refused:
        LoHa(targets=("embed_tokens",)).attach(tiny_model("llama"), "default", seed=0)
    assert refused.value.field == "method.targets"
    for settings in ({"rank": 0}, {"alpha": 0}, {"dropout": 0.1}):
        with pytest.raises(ValidationError):
            LoHa.model_validate(settings)
