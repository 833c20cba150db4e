"""(IA)³: what is scaled in every family, that nothing decays, and peft's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from methods.beside_peft import CONFIG, WARNINGS, WEIGHTS, read_by_peft, read_here, written_by_peft, written_here
from methods.examples import FAMILIES
from models.rows import plain_logprobs, random_rows
from models.tiny import CONFIGS, plain_model, tiny_model
from models.tuned import LENGTHS, logprobs, quiet, randomize
from near import assert_near
from peft import IA3Config
from safetensors.torch import load_file
from torch import Tensor

from luthier.errors import RecipeError, TargetNotFound
from luthier.methods import IA3
from luthier.models.anatomy import num_key_value_heads

pytestmark = WARNINGS


def test_keys_values_and_the_feed_forwards_hidden_state_are_scaled_and_nothing_else() -> None:
    model = tiny_model("llama")
    attachment = IA3().attach(model, "default", seed=0)
    randomize(attachment, 1.0)
    plain = plain_model("llama")
    for name, scale in attachment.trainables.items():
        layer = plain.get_submodule(name.removesuffix(".ia3_l"))
        if "down_proj" in name:
            layer.register_forward_pre_hook(lambda _, inputs, scale=scale: (inputs[0] * scale,))
        else:
            assert name.endswith(("k_proj.ia3_l", "v_proj.ia3_l"))
            layer.register_forward_hook(lambda _, inputs, output, scale=scale: output * scale)
    assert_near(logprobs(model), plain_logprobs(plain, random_rows(LENGTHS)))


@pytest.mark.parametrize("name", FAMILIES)
def test_in_every_family_two_vectors_as_wide_as_the_keys_and_one_as_the_hidden_state_train(name: str) -> None:
    model = tiny_model(name)
    attachment = IA3().attach(model, "default", seed=0)
    width_of_keys = num_key_value_heads(model.hf.config) * 8
    assert attachment.num_trainable == 2 * (2 * width_of_keys + 40)


def test_the_count_is_the_known_one_of_a_tiny_llama(monkeypatch: pytest.MonkeyPatch) -> None:
    _, values = CONFIGS["llama"]
    monkeypatch.setitem(CONFIGS, "wider", ("llama", {**values, "intermediate_size": 48, "vocab_size": 64}))
    assert IA3().attach(tiny_model("wider"), "default", seed=0).num_trainable == 160


def test_scales_do_not_decay_for_that_would_pull_them_to_zero() -> None:
    groups = IA3().attach(tiny_model("llama"), "default", seed=0).groups
    assert [group.decays for group in groups] == [False]


def test_zero_and_negative_scales_are_merged_as_any_other() -> None:
    model = tiny_model("llama")
    attachment = IA3().attach(model, "default", seed=0)
    randomize(attachment, 1.0)
    for scale in attachment.trainables.values():
        scale.data[::3] = 0.0
    unmerged = logprobs(model)
    attachment.merge()
    assert_near(logprobs(model, None), unmerged)


def test_a_scale_near_1_is_not_rounded_away_over_a_bf16_base() -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    attachment = IA3(targets=("v_proj",)).attach(model, "default", seed=0)
    before = logprobs(model)
    for scale in attachment.trainables.values():
        scale.data.fill_(1.003)  # nearer to 1 than the next bf16 number
    assert bool((logprobs(model) != before).any())


@pytest.mark.parametrize("name", FAMILIES)
def test_peft_computes_the_same_from_a_written_adapter(name: str, tmp_path: Path) -> None:
    expected = written_here(IA3(), name, tmp_path, size=1.0)
    assert_near(read_by_peft(tmp_path, name), expected)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gpt2", {"targets": ("c_proj", "c_attn"), "feedforward": ("mlp.c_proj",), "queries": True}),
        ("gpt2", {"targets": ("c_proj",), "feedforward": ()}),
        ("llama", {"targets": "all-linear", "layers": (1,)}),
        ("llama", {"targets": ("q_proj", "up_proj"), "feedforward": ("up_proj",)}),
        ("gpt_neox", {"targets": ("dense", "role:down"), "feedforward": ("0.attention.dense",)}),
    ],
)
def test_peft_understands_chosen_layers_and_which_of_them_are_scaled_at_their_inputs(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    expected = written_here(IA3(**settings), name, tmp_path, size=1.0)
    assert_near(read_by_peft(tmp_path, name), expected)
    assert_near(read_here(IA3, tmp_path, name), expected, 1e-7)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("llama", {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
        ("llama", {"target_modules": ["q_proj", "o_proj"], "feedforward_modules": []}),
        ("gpt2", {"target_modules": ["c_attn", "mlp.c_proj"], "feedforward_modules": ["mlp.c_proj"]}),
        ("opt", {"target_modules": ["k_proj", "fc1", "fc2"], "feedforward_modules": ["fc1", "fc2"]}),
        ("phi3", {"target_modules": ["qkv_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    ],
)
def test_an_adapter_of_peft_computes_the_same_here(name: str, config: dict[str, Any], tmp_path: Path) -> None:
    expected = written_by_peft(IA3Config(task_type="CAUSAL_LM", **config), name, tmp_path, size=1.0)
    assert_near(read_here(IA3, tmp_path, name), expected)


def test_the_queries_of_a_fused_layer_have_scale_1_in_the_file_and_stay_untrained_after_it(tmp_path: Path) -> None:
    written_here(IA3(), "gpt2", tmp_path, size=1.0)
    vector = load_file(tmp_path / WEIGHTS)["base_model.model.transformer.h.0.attn.c_attn.ia3_l"]
    assert vector.shape == (96, 1)
    assert bool((vector[:32] == 1).all())
    assert not bool((vector[32:] == 1).any())
    again = IA3(begin_from=str(tmp_path)).attach(tiny_model("gpt2"), "default", seed=0)
    assert again.num_trainable == 2 * (64 + 40)
    config = IA3Config(task_type="CAUSAL_LM", target_modules=["c_attn"], feedforward_modules=[])
    written_by_peft(config, "gpt2", tmp_path / "theirs")
    whole = IA3(begin_from=str(tmp_path / "theirs")).attach(tiny_model("gpt2"), "default", seed=0)
    assert whole.num_trainable == 2 * 96


def test_the_layers_scaled_at_their_inputs_are_told_apart_by_a_pattern_that_meets_only_them(tmp_path: Path) -> None:
    written_here(IA3(), "llama", tmp_path / "a")
    written_here(IA3(targets=("c_proj",)), "gpt2", tmp_path / "b")
    patterns = [json.loads((tmp_path / run / CONFIG).read_text())["feedforward_modules"] for run in "ab"]
    assert patterns == [r".*\.(down_proj)", r"transformer\.h\.0\.mlp\.c_proj|transformer\.h\.1\.mlp\.c_proj"]


def test_a_recipe_that_states_other_inputs_than_the_adapter_is_refused_by_field(tmp_path: Path) -> None:
    written_here(IA3(), "llama", tmp_path)
    for settings in ({"feedforward": ("k_proj",)}, {"targets": ("k_proj",)}):
        with pytest.raises(RecipeError) as refused:
            IA3.model_validate({"from": str(tmp_path), **settings}).attach(tiny_model("llama"), "default", seed=0)
        assert refused.value.field == f"method.{next(iter(settings))}"


def test_what_is_no_linear_layer_of_the_model_is_refused_with_the_field() -> None:
    with pytest.raises(RecipeError, match="embedding") as refused:
        IA3(targets=("embed_tokens",)).attach(tiny_model("llama"), "default", seed=0)
    assert refused.value.field == "method.targets"
    with pytest.raises(TargetNotFound) as unknown:
        IA3(feedforward=("c_proj",)).attach(tiny_model("llama"), "default", seed=0)
    assert unknown.value.field == "method.feedforward"


def test_written_twice_it_is_the_same_file(tmp_path: Path) -> None:
    written_here(IA3(), "phi3", tmp_path / "a", size=1.0)
    again = IA3(begin_from=str(tmp_path / "a")).attach(tiny_model("phi3"), "default", seed=3)
    (tmp_path / "b").mkdir()
    again.write(tmp_path / "b", quiet)
    tensors: list[dict[str, Tensor]] = [load_file(tmp_path / run / WEIGHTS) for run in "ab"]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])
