"""KronA: the product, its rank, start and count, and that peft reads it as a LoKr with whole factors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from methods.beside_peft import CONFIG, WARNINGS, read_by_peft, read_here, written_by_peft, written_here
from models.rows import batch_of
from models.tiny import plain_model, tiny_model
from models.tuned import LENGTHS, randomize
from near import assert_near
from peft import LoKrConfig
from pydantic import ValidationError

from luthier.errors import RecipeError
from luthier.methods import KronA, LoKr

pytestmark = WARNINGS


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("factor", [-1, 2])
def test_the_update_is_s_times_the_kronecker_product(name: str, factor: int) -> None:
    model = tiny_model(name)
    target = model.anatomy.linears[0]
    attachment = KronA(scale=2.5, factor=factor, targets=(target,)).attach(model, "default", seed=0)
    randomize(attachment, 1.0)
    a, b = (tensor.detach() for tensor in attachment.trainables.values())
    attachment.merge()
    update = model.hf.get_submodule(target).weight - plain_model(name).get_submodule(target).weight
    assert_near(update.t() if name == "gpt2" else update, 2.5 * torch.kron(a, b))


def test_the_rank_of_the_update_is_the_product_of_the_factors_ranks() -> None:
    torch.manual_seed(0)
    a = torch.randn(4, 2, dtype=torch.float64) @ torch.randn(2, 5, dtype=torch.float64)
    b = torch.randn(6, 3, dtype=torch.float64) @ torch.randn(3, 7, dtype=torch.float64)
    assert int(torch.linalg.matrix_rank(torch.kron(a, b))) == 2 * 3
    attachment = KronA(targets=("q_proj",)).attach(tiny_model("llama"), "default", seed=0)
    randomize(attachment, 1.0)
    a, b = list(attachment.trainables.values())[:2]
    assert int(torch.linalg.matrix_rank(torch.kron(a.double(), b.double()))) == 32


def test_at_the_start_the_inner_factor_is_zero_and_it_alone_has_a_gradient() -> None:
    model = tiny_model("llama")
    attachment = KronA().attach(model, "default", seed=0)
    loss = model.forward(batch_of(LENGTHS, model.layout), "default").logprob_N.sum()
    tensors = attachment.trainables
    for (name, tensor), grad in zip(tensors.items(), torch.autograd.grad(loss, list(tensors.values())), strict=True):
        assert bool(tensor.any()) != name.endswith("lokr_w2")
        assert bool(grad.any()) == name.endswith("lokr_w2")


def test_the_count_is_that_of_two_factors_whose_sizes_multiply_to_those_of_the_layer() -> None:
    model = tiny_model("llama")
    attachment = KronA().attach(model, "default", seed=0)
    shapes = {name: tuple(tensor.shape) for name, tensor in attachment.trainables.items()}
    total = 0
    for target in model.anatomy.linears:
        (p, q), (s, t) = shapes[f"{target}.lokr_w1"], shapes[f"{target}.lokr_w2"]
        assert (p * s, q * t) == tuple(model.hf.get_submodule(target).weight.shape)
        total += p * q + s * t
    assert attachment.num_trainable == total
    assert total < 0.15 * sum(model.hf.get_submodule(target).weight.numel() for target in model.anatomy.linears)


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "phi3"])
@pytest.mark.parametrize("settings", [{"scale": 2.5}, {"scale": 0.25, "factor": 4}, {"targets": ("role:value",)}])
def test_peft_computes_the_same_from_a_written_adapter(name: str, settings: dict[str, object], tmp_path: Path) -> None:
    expected = written_here(KronA.model_validate(settings), name, tmp_path, size=0.3)
    assert_near(read_by_peft(tmp_path, name), expected)
    assert_near(read_here(LoKr, tmp_path, name), expected)


def test_the_strength_lies_in_alpha_and_is_found_there_again(tmp_path: Path) -> None:
    expected = written_here(KronA(scale=2.5), "llama", tmp_path, size=0.3)
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["alpha"] / config["r"] == 2.5
    assert config["r"] == 8  # the longest side of an inner factor
    assert_near(read_here(KronA, tmp_path, "llama"), expected, 1e-7)
    model = tiny_model("llama")
    KronA(begin_from=str(tmp_path), scale=2.5, targets="all-linear").attach(model, "default", seed=0)
    with pytest.raises(RecipeError) as refused:
        KronA(begin_from=str(tmp_path), scale=2.0).attach(tiny_model("llama"), "default", seed=0)
    assert refused.value.field == "method.scale"


def test_a_lokr_of_peft_with_whole_factors_is_read_as_one(tmp_path: Path) -> None:
    config = LoKrConfig(task_type="CAUSAL_LM", r=32, alpha=7, target_modules="all-linear")
    expected = written_by_peft(config, "llama", tmp_path, size=0.3)
    assert_near(read_here(KronA, tmp_path, "llama"), expected)


def test_a_lokr_of_low_rank_is_refused(tmp_path: Path) -> None:
    written_here(LoKr(rank=2), "llama", tmp_path)
    with pytest.raises(RecipeError, match="lokr_w2_a") as refused:
        KronA(begin_from=str(tmp_path)).attach(tiny_model("llama"), "default", seed=0)
    assert refused.value.mend


@pytest.mark.parametrize("settings", [{"scale": 0}, {"factor": 0}, {"rank": 4}])
def test_values_that_make_no_krona_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        KronA.model_validate(settings)
