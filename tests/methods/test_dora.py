"""DoRA: the paper's formula, the norm as a constant, and peft's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from methods.adapted import dense, first_layer, output_of, some_inputs
from methods.by_peft import MEANT, read_by_peft, saved_by_peft, written
from models.tiny import tiny_model
from models.tuned import logprobs, random_lora, randomize
from near import assert_all_near, assert_apart, assert_near
from peft import LoraConfig
from torch import Tensor

from luthier.errors import RecipeError
from luthier.methods import DoRA, LoRA
from luthier.methods.bank import AdaptedLinear
from luthier.methods.dora import DoRABranch, row_norms, row_norms_reference
from luthier.ops.dropout import Dropout

pytestmark = MEANT
PLACES = [("llama", "k_proj"), ("llama", "down_proj"), ("gpt2", "c_attn"), ("gemma2", "o_proj")]


def random_layer(name: str, target: str, fast: bool = True, **settings: Any) -> tuple[AdaptedLinear, DoRABranch]:
    """A layer under a DoRA whose tensors are random, the lengths around those of the weight."""
    attachment = DoRA(rank=3, alpha=5, targets=(target,), **settings).attach(tiny_model(name), "default", 0, fast=fast)
    layer = first_layer(attachment)
    branch = layer.branch("default")
    assert isinstance(branch, DoRABranch)
    lengths_O = branch.m_O.detach().clone()
    randomize(attachment, 0.3)
    branch.m_O.data.add_(lengths_O)
    return layer, branch


def turned(layer: AdaptedLinear, branch: DoRABranch) -> Tensor:
    """W + s B A."""
    return layer.weight + 5 / 3 * branch.b_OR @ branch.a_RI


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(("name", "target"), PLACES)
def test_rows_of_the_new_weight_have_the_learned_lengths_and_the_bias_is_not_scaled(
    name: str, target: str, fast: bool
) -> None:
    layer, branch = random_layer(name, target, fast)
    turned_OI, x_NI = turned(layer, branch), some_inputs(layer)
    weight_OI = branch.m_O[:, None] * turned_OI / turned_OI.norm(dim=1, keepdim=True)
    assert_near(output_of(layer, x_NI), dense(layer, x_NI, weight_OI))


@pytest.mark.parametrize(("name", "target"), PLACES)
def test_with_dropout_only_what_is_learned_sees_dropped_inputs(name: str, target: str) -> None:
    layer, branch = random_layer(name, target, dropout=0.4)
    x_NI, keys_N = some_inputs(layer), torch.arange(5)
    dropped_NI = Dropout(keys_N, layer.salt, 0.4)(x_NI)
    gain_O = branch.m_O / turned(layer, branch).norm(dim=1)
    expected = dense(layer, x_NI, layer.weight) + (gain_O - 1) * (dropped_NI @ layer.weight.t())
    expected = expected + gain_O * 5 / 3 * (dropped_NI @ branch.a_RI.t() @ branch.b_OR.t())
    assert_near(output_of(layer, x_NI, keys_N), expected)
    assert_apart(output_of(layer, x_NI, keys_N), output_of(layer, x_NI))


@pytest.mark.parametrize("keys_N", [None, torch.arange(5)])
def test_the_gradient_is_that_of_the_formula_with_the_norm_held_constant(keys_N: Tensor | None) -> None:
    layer, branch = random_layer("llama", "v_proj", dropout=0.4)
    x_NI = some_inputs(layer).requires_grad_()
    pull_NO = torch.randn(5, len(layer.weight), generator=torch.Generator().manual_seed(1))
    trained = [x_NI, branch.a_RI, branch.b_OR, branch.m_O]
    gradients = torch.autograd.grad((output_of(layer, x_NI, keys_N) * pull_NO).sum(), trained)

    def by_formula(norm_O: Tensor) -> list[Tensor]:
        branch_NI = x_NI if keys_N is None else Dropout(keys_N, layer.salt, 0.4)(x_NI)
        scaled_NO = branch_NI @ (branch.m_O / norm_O)[:, None].mul(turned(layer, branch)).t()
        y_NO = x_NI @ layer.weight.t() - branch_NI @ layer.weight.t() + scaled_NO
        return list(torch.autograd.grad((y_NO * pull_NO).sum(), trained))

    norm_O = turned(layer, branch).norm(dim=1)
    assert_all_near(gradients, by_formula(norm_O.detach()))
    assert_apart(gradients[1], by_formula(norm_O)[1])


@pytest.mark.parametrize("shape", [(7, 33), (40, 8), (64, 64)])
def test_the_norm_by_thin_products_is_the_norm_of_the_whole_matrix(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    weight_OI = torch.randn(shape, generator=generator)
    a_RI, b_OR = torch.randn(5, shape[1], generator=generator), torch.randn(shape[0], 5, generator=generator)
    assert_near(row_norms(weight_OI, a_RI, b_OR, 1.7), row_norms_reference(weight_OI, a_RI, b_OR, 1.7))
    half_OI = weight_OI.bfloat16()
    assert_near(row_norms(half_OI, a_RI, b_OR, 0.1), row_norms_reference(half_OI, a_RI, b_OR, 0.1), 1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_the_start_the_lengths_are_the_norms_bit_for_bit(dtype: torch.dtype) -> None:
    for layer in DoRA(rank=2).attach(tiny_model("gpt2", dtype=dtype), "default", seed=0).layers.values():
        branch = layer.branch("default")
        assert isinstance(branch, DoRABranch)
        assert isinstance(layer, AdaptedLinear)
        assert torch.equal(branch.m_O, row_norms(layer.weight, branch.a_RI, branch.b_OR, branch.scale))


def test_in_half_precision_too_a_fresh_adapter_changes_nothing() -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    before = logprobs(model, None)
    DoRA(rank=4).attach(model, "default", seed=0)
    assert_near(logprobs(model), before, 1e-6)


def test_learning_the_lengths_alone_leaves_the_directions_of_the_rows() -> None:
    layer, branch = random_layer("llama", "k_proj")
    branch.b_OR.data.zero_()
    merged_OI, bias_O = branch.merged(layer.weight, layer.bias)
    assert_near(merged_OI.norm(dim=1), branch.m_O.abs())
    cosine_O = torch.cosine_similarity(merged_OI, layer.weight, dim=1)
    assert_near(cosine_O, branch.m_O.sign())
    assert bias_O is not None
    assert torch.equal(bias_O, layer.bias)


def test_a_row_of_zeros_stays_one_and_has_a_finite_gradient() -> None:
    model = tiny_model("llama")
    model.hf.get_submodule("model.layers.0.self_attn.k_proj").weight.data[2] = 0
    attachment = DoRA(rank=2, targets=("k_proj",)).attach(model, "default", seed=0)
    layer = first_layer(attachment)
    x_NI = some_inputs(layer)
    y_NO = output_of(layer, x_NI)
    assert_near(y_NO, dense(layer, x_NI, layer.weight))
    branch = layer.branch("default")
    gradients = torch.autograd.grad(y_NO.square().sum(), list(branch.tensors.values()))
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def test_the_norm_follows_a_base_into_which_another_adapter_is_merged() -> None:
    model, reference = tiny_model("llama"), tiny_model("llama")
    tuned = DoRA(rank=2).attach(model, "default", seed=0)
    randomize(tuned)
    random_lora(model, "other").merge()
    random_lora(reference, "other").merge()
    randomize(DoRA(rank=2).attach(reference, "default", seed=0))
    assert_near(logprobs(model), logprobs(reference))


def test_the_count_is_lora_s_and_one_length_for_each_output() -> None:
    tiny = DoRA(rank=4, targets=("q_proj",)).attach(tiny_model("llama"), "default", seed=0)
    assert tiny.num_trainable == 576
    for name in ("llama", "gpt2", "falcon-new"):
        attachment = DoRA(rank=3).attach(tiny_model(name), "default", seed=0)
        shapes = [layer.weight.shape for layer in attachment.layers.values() if isinstance(layer, AdaptedLinear)]
        assert attachment.num_trainable == sum(3 * (o + i) + o for o, i in shapes)


def test_lora_plus_raises_the_rate_of_b_only() -> None:
    others, b = DoRA(rank=2, lr_ratio=16).attach(tiny_model("llama"), "default", seed=0).groups
    assert {key.split("proj.")[-1] for key in b.tensors} == {"lora_B.weight"}
    assert {key.split("proj.")[-1] for key in others.tensors} == {"lora_A.weight", "lora_magnitude_vector"}
    assert (others.lr_factor, b.lr_factor) == (1.0, 16.0)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", {"rank": 3, "alpha": 5, "dropout": 0.2}),
        ("gpt2", {"rank": 3, "alpha": 5}),
        ("gpt_neox", {"rank": 3, "alpha": 5}),
        (
            "llama",
            {"rank": 4, "alpha": 3, "rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 7}},
        ),
        ("llama", {"rank": 3, "targets": ("q_proj", "lm_head")}),
    ],
)
def test_peft_computes_the_same_from_a_written_adapter(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    expected = written(tmp_path / "a", name, DoRA(**settings))
    assert_near(read_by_peft(tmp_path / "a", name), expected)


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon-new"])
def test_an_adapter_saved_by_peft_computes_the_same_here(name: str, tmp_path: Path) -> None:
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=3, use_dora=True, target_modules="all-linear",
        fan_in_fan_out=name == "gpt2",
    )  # fmt: skip
    expected = saved_by_peft(tmp_path / "a", name, config)
    model = tiny_model(name)
    DoRA(begin_from=str(tmp_path / "a")).attach(model, "default", seed=0)
    assert_near(logprobs(model), expected)


def test_a_plain_lora_is_not_taken_for_a_dora(tmp_path: Path) -> None:
    written(tmp_path / "a", "llama", LoRA(rank=2))
    with pytest.raises(RecipeError) as refused:
        DoRA(begin_from=str(tmp_path / "a")).attach(tiny_model("llama"), "default", seed=0)
    assert refused.value.field == "use_dora"
    assert "method.kind" in refused.value.mend


def test_the_embedding_is_refused_with_the_mend() -> None:
    with pytest.raises(RecipeError) as refused:
        DoRA(targets=("embed_tokens",)).attach(tiny_model("llama"), "default", seed=0)
    assert refused.value.field == "method.targets"
    assert refused.value.mend
