"""BitFit: which biases train, their gradients against those of full tuning, and what is done where biases are missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models.rows import batch_of, class_rows, plain_class_logprobs, plain_logprobs, random_rows
from models.tiny import CONFIGS, tiny_model
from models.tuned import LENGTHS, logprobs, plain_attention, randomize
from near import assert_apart, assert_near
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from luthier.errors import RecipeError
from luthier.methods import Attachment, BitFit
from luthier.models.call import Call, Run, calling
from luthier.models.language_model import LanguageModel
from luthier.models.writing import write_model

BIASED = ("llama", "phi", "gpt2", "gpt_neox", "opt", "opt-norm-after", "falcon", "falcon-new")
BARE = {"attention_bias": False, "mlp_bias": False}


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Llama without biases, as most are."""
    monkeypatch.setitem(CONFIGS, "llama-bare", ("llama", {**CONFIGS["llama"][1], **BARE}))


def tuned(name: str, **settings: Any) -> tuple[LanguageModel, Attachment]:
    """A tiny model with random biases."""
    model = tiny_model(name)
    attachment = BitFit(**settings).attach(model, "default", seed=0)
    randomize(attachment, 0.3)
    return model, attachment


def biases_by_role(model: LanguageModel) -> dict[str, nn.Parameter]:
    """The biases of the linear layers and norms of a model without adapters, but for the head's."""
    return {
        f"{name}.bias": module.bias
        for name, module in model.hf.named_modules()
        if isinstance(module, nn.Linear | Conv1D | nn.LayerNorm)
        and module.bias is not None
        and name != model.anatomy.head
    }


@pytest.mark.parametrize("name", BIASED)
def test_the_gradients_are_those_that_full_tuning_gives_the_biases(name: str) -> None:
    reference = tiny_model(name)
    weights = biases_by_role(reference)
    for bias in weights.values():
        bias.requires_grad_(True)
    loss = reference.forward(batch_of(LENGTHS, reference.layout)).logprob_N.sum()
    expected = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
    model = tiny_model(name)
    trained = BitFit().attach(model, "default", seed=0).trainables
    assert set(trained) == set(expected)
    loss = model.forward(batch_of(LENGTHS, model.layout), "default").logprob_N.sum()
    found = dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for key, gradient in expected.items():
        assert float((found[key] - gradient).abs().max()) <= 1e-5 * largest, key


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon-new"])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_linear_layer_adds_the_trained_bias_in_the_place_of_its_own(name: str, autocast: bool) -> None:
    model, attachment = tuned(name)
    for target in model.anatomy.linears:
        layer = model.hf.get_submodule(target)
        x = torch.randn(5, layer.weight.shape[1], generator=torch.Generator().manual_seed(1))
        with (
            calling(Call(None, (Run(0, 5, "default"),))),
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        ):
            y: Tensor = layer(x)
        expected = x.double() @ layer.weight.double().t() + attachment.trainables[f"{target}.bias"]
        assert_near(y, expected, 2e-2 if autocast else 1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_half_precision_layer_gives_the_same_bits_until_its_bias_moves(name: str) -> None:
    model = tiny_model(name, dtype=torch.bfloat16)
    BitFit().attach(model, "default", seed=0)
    for target in model.anatomy.linears:
        layer = model.hf.get_submodule(target)
        x = torch.randn(5, layer.weight.shape[1], generator=torch.Generator().manual_seed(1)).bfloat16()
        with calling(Call(None, (Run(0, 5, "default"),))):
            y = layer(x)
        assert torch.equal(y, layer.base(x))


def test_the_count_is_that_of_the_biases() -> None:
    layer = 3 * 32 + 32 + 40 + 32 + 2 * 32
    assert BitFit().attach(tiny_model("gpt2"), "default", seed=0).num_trainable == 2 * layer + 32
    kv = 2 * 8
    layer = 32 + 2 * kv + 32 + 2 * 40 + 32
    assert BitFit().attach(tiny_model("llama"), "default", seed=0).num_trainable == 2 * layer


def test_the_bias_of_the_head_trains_only_where_it_is_named() -> None:
    assert "lm_head.bias" not in BitFit().attach(tiny_model("phi"), "default", seed=0).trainables
    named = BitFit(targets=("lm_head", "fc2")).attach(tiny_model("phi"), "default", seed=0).trainables
    assert sorted(named) == ["lm_head.bias", "model.layers.0.mlp.fc2.bias", "model.layers.1.mlp.fc2.bias"]


def test_biases_do_not_decay() -> None:
    assert [group.decays for group in BitFit().attach(tiny_model("gpt2"), "default", seed=0).groups] == [False]


def test_a_bias_of_the_keys_has_no_gradient_without_rotary_positions_and_one_with_them() -> None:
    for name, is_felt in (("opt", False), ("llama", True)):
        model = tiny_model(name)
        trained = BitFit(targets=("k_proj", "v_proj")).attach(model, "default", seed=0).trainables
        loss = model.forward(batch_of(LENGTHS, model.layout), "default").logprob_N.sum()
        gradients = zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True)
        size = {key: float(gradient.abs().max()) for key, gradient in gradients}
        keys = max(value for key, value in size.items() if "k_proj" in key)
        values = max(value for key, value in size.items() if "v_proj" in key)
        assert (keys > 1e-4 * values) == is_felt


# ── models that lack biases ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["llama-bare", "qwen2", "phi3", "gemma"])
def test_a_model_without_some_biases_is_refused_until_one_says_what_to_do(name: str) -> None:
    with pytest.raises(RecipeError) as refused:
        BitFit().attach(tiny_model(name), "default", seed=0)
    assert refused.value.field == "method.missing"
    for mend in ("add-zero", "partial", "ln-tuning"):
        assert mend in refused.value.mend


def test_partial_trains_the_biases_that_exist_and_is_refused_where_there_are_none() -> None:
    trained = BitFit(missing="partial").attach(tiny_model("qwen2"), "default", seed=0).trainables
    assert {key.split(".", 3)[3] for key in trained} == {f"self_attn.{part}_proj.bias" for part in "qkv"}
    with pytest.raises(RecipeError) as refused:
        BitFit(missing="partial").attach(tiny_model("llama-bare"), "default", seed=0)
    assert "add-zero" in refused.value.mend


@pytest.mark.parametrize("name", ["llama-bare", "qwen2", "phi3", "gemma2"])
def test_added_biases_stand_at_every_linear_layer_and_start_as_the_base_exactly(name: str) -> None:
    model = tiny_model(name)
    before = logprobs(model, None)
    attachment = BitFit(missing="add-zero").attach(model, "default", seed=0)
    assert {f"{target}.bias" for target in model.anatomy.linears} <= set(attachment.trainables)
    assert_near(logprobs(model), before, 1e-6)
    randomize(attachment)
    assert_apart(logprobs(model), before)
    assert_near(logprobs(model, None), before, 1e-7)


@pytest.mark.parametrize(
    ("name", "settings", "switches"),
    [
        ("llama-bare", {}, {"attention_bias", "mlp_bias"}),
        ("llama-bare", {"targets": ("q_proj", "v_proj")}, {"attention_bias"}),
        ("llama-bare", {"targets": ("up_proj",), "layers": (1,)}, {"mlp_bias"}),
        ("granite", {}, {"attention_bias", "mlp_bias"}),
        ("smollm3", {}, {"attention_bias", "mlp_bias"}),
        ("gemma2", {"targets": ("o_proj",)}, {"attention_bias"}),
    ],
)
def test_merged_with_added_biases_it_is_a_plain_model_whose_config_says_so(
    name: str, settings: dict[str, Any], switches: set[str], tmp_path: Path
) -> None:
    model, attachment = tuned(name, missing="add-zero", **settings)
    unmerged = logprobs(model)
    attachment.merge()
    assert_near(logprobs(model, None), unmerged)
    write_model(model, tmp_path, torch.float32)
    plain, info = AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation=plain_attention(name), output_loading_info=True, dtype=torch.float32
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert_near(plain_logprobs(plain.eval(), random_rows(LENGTHS)), unmerged)
    config = plain.config.to_dict()
    assert {key for key in ("attention_bias", "mlp_bias") if config.get(key)} == switches


def test_biases_that_are_added_to_an_encoder_and_to_its_head_are_merged_too(tmp_path: Path) -> None:
    model, attachment = tuned("modernbert", missing="add-zero")
    assert {"head.dense.bias", "model.layers.0.attn.Wqkv.bias"} < set(attachment.trainables)
    unmerged = logprobs(model)
    attachment.merge()
    write_model(model, tmp_path, torch.float32)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert_near(plain_class_logprobs(plain, class_rows(LENGTHS, "first")), unmerged)
    values = plain.config.to_dict()
    assert all(values[switch] for switch in ("attention_bias", "mlp_bias", "classifier_bias"))


@pytest.mark.parametrize(("name", "ending"), [("mistral", "q_proj"), ("phi3", "qkv_proj"), ("qwen3", "up_proj")])
def test_added_biases_that_a_written_model_could_not_hold_are_not_merged(name: str, ending: str) -> None:
    model, attachment = tuned(name, missing="add-zero")
    unmerged = logprobs(model)
    before = model.hf.config.to_dict()
    with pytest.raises(RecipeError, match="merge") as refused:
        attachment.merge()
    assert ending in refused.value.found
    assert refused.value.mend
    assert model.hf.config.to_dict() == before
    assert_near(logprobs(model), unmerged, 1e-7)


def test_preparing_a_merge_leaves_the_generator_of_the_process_alone() -> None:
    _, attachment = tuned("llama-bare", missing="add-zero")
    before = torch.random.get_rng_state()
    attachment.merge()
    assert torch.equal(torch.random.get_rng_state(), before)
