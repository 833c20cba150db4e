"""LoKr: how widths are split, which factors are of low rank, their start and count, and peft's files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from methods.beside_peft import WARNINGS, read_by_peft, read_here, written_by_peft, written_here
from models.rows import batch_of
from models.tiny import plain_model, tiny_model
from models.tuned import LENGTHS, randomize
from near import assert_near
from peft import LoKrConfig
from peft.tuners.lokr.layer import factorization
from pydantic import ValidationError
from torch import Tensor

from luthier.errors import RecipeError
from luthier.methods import LoKr
from luthier.methods.lokr import kron_shapes, split

pytestmark = WARNINGS


@pytest.mark.parametrize("factor", [-1, *range(1, 20), 64])
def test_widths_are_split_as_peft_splits_them(factor: int) -> None:
    assert [split(width, factor) for width in range(1, 300)] == [
        factorization(width, factor) for width in range(1, 300)
    ]


def test_a_prime_width_has_no_split_and_a_square_one_the_most_even() -> None:
    assert (split(127, -1), split(144, -1), split(40, -1), split(40, 3)) == ((1, 127), (12, 12), (5, 8), (2, 20))


def whole(factors: dict[str, Tensor], name: str) -> Tensor:
    """A factor as one matrix."""
    found = [tensor for ending, tensor in factors.items() if ending.split(".")[-1].startswith(name)]
    return found[0] if len(found) == 1 else found[0] @ found[1]


@pytest.mark.parametrize(
    ("settings", "endings"),
    [
        ({"rank": 2}, ["lokr_w1", "lokr_w2_a", "lokr_w2_b"]),
        ({"rank": 9}, ["lokr_w1", "lokr_w2"]),
        ({"rank": 1, "decompose_both": True}, ["lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"]),
        ({"rank": 30, "factor": 2}, ["lokr_w1", "lokr_w2"]),
    ],
)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_update_is_alpha_over_rank_times_the_kronecker_product(
    name: str, settings: dict[str, object], endings: list[str]
) -> None:
    model = tiny_model(name)
    target = model.anatomy.linears[0]
    method = LoKr.model_validate({"alpha": 5, "targets": [target], **settings})
    attachment = method.attach(model, "default", seed=0)
    randomize(attachment, 1.0)
    factors = {key: tensor.detach() for key, tensor in attachment.trainables.items()}
    assert [key.split(".")[-1] for key in factors] == endings
    attachment.merge()
    update = model.hf.get_submodule(target).weight - plain_model(name).get_submodule(target).weight
    expected = torch.kron(whole(factors, "lokr_w1"), whole(factors, "lokr_w2")) * 5 / method.rank
    assert_near(update.t() if name == "gpt2" else update, expected)


def test_at_the_start_the_outer_factor_is_zero_and_it_alone_has_a_gradient() -> None:
    for decompose_both in (False, True):
        model = tiny_model("llama")
        attachment = LoKr(rank=1, decompose_both=decompose_both).attach(model, "default", seed=0)
        loss = model.forward(batch_of(LENGTHS, model.layout), "default").logprob_N.sum()
        tensors = attachment.trainables
        grads = torch.autograd.grad(loss, list(tensors.values()))
        for (name, tensor), grad in zip(tensors.items(), grads, strict=True):
            is_zero = name.endswith("lokr_w1_a" if decompose_both else "lokr_w1")
            assert bool(tensor.any()) != is_zero
            assert bool(grad.any()) == is_zero


def test_the_count_is_that_of_the_factors() -> None:
    attachment = LoKr(rank=4, targets=("q_proj", "v_proj")).attach(tiny_model("llama"), "default", seed=0)
    assert attachment.num_trainable == 2 * ((4 * 4 + 8 * 8) + (4 * 4 + 4 * 8)) == 256
    (p, q), (s, t) = kron_shapes(40, 32, -1)
    low = LoKr(rank=2, targets=("up_proj",)).attach(tiny_model("llama"), "default", seed=0)
    assert low.num_trainable == 2 * (p * q + 2 * (s + t))


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "phi3"])
@pytest.mark.parametrize(
    "method", [LoKr(rank=2, alpha=5), LoKr(rank=16, alpha=5), LoKr(rank=1, factor=3, decompose_both=True)]
)
def test_peft_computes_the_same_from_a_written_adapter(name: str, method: LoKr, tmp_path: Path) -> None:
    expected = written_here(method, name, tmp_path, size=0.3)
    assert_near(read_by_peft(tmp_path, name), expected)


@pytest.mark.parametrize(
    "config",
    [
        {"r": 2, "alpha": 7, "target_modules": "all-linear"},
        {"r": 1, "decompose_both": True, "decompose_factor": 8, "target_modules": ["q_proj", "down_proj"]},
        {"r": 32, "init_weights": "lycoris", "target_modules": ["v_proj"], "layers_to_transform": [1]},
    ],
)
def test_an_adapter_of_peft_computes_the_same_here(config: dict[str, object], tmp_path: Path) -> None:
    expected = written_by_peft(LoKrConfig(task_type="CAUSAL_LM", **config), "llama", tmp_path, size=0.3)
    assert_near(read_here(LoKr, tmp_path, "llama"), expected)


def test_strengths_by_pattern_are_refused_rather_than_half_read(tmp_path: Path) -> None:
    config = LoKrConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], alpha_pattern={"q_proj": 3})
    written_by_peft(config, "llama", tmp_path)
    with pytest.raises(RecipeError) as refused:
        LoKr(begin_from=str(tmp_path)).attach(tiny_model("llama"), "default", seed=0)
    assert refused.value.field == "alpha_pattern"


@pytest.mark.parametrize("settings", [{"factor": 0}, {"factor": -2}, {"rank": 0}, {"alpha": -1.0}])
def test_values_that_make_no_lokr_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LoKr.model_validate(settings)


def test_an_embedding_is_refused() -> None:
    with pytest.raises(RecipeError, match="embedding"):
        LoKr(targets=("embed_tokens",)).attach(tiny_model("llama"), "default", seed=0)
