"""Full tuning: which weights move, which decay, and that what is written is an ordinary transformers folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models.rows import batch_of, plain_logprobs, random_rows
from models.tiny import MIXTURES, NAMES, tiny_model
from models.tuned import LENGTHS, logprobs, plain_attention, quiet, randomize
from near import assert_apart, assert_near
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.errors import RecipeError
from luthier.methods import Full, LoRA, TopLayers
from luthier.methods.contract import Attachment
from luthier.models.language_model import LanguageModel
from luthier.models.writing import write_model
from luthier.training.flat import FlatTrainables
from luthier.training.optimizers import AdamW, FlatAdamW


def trained(name: str, dtype: torch.dtype = torch.float32, **settings: Any) -> tuple[LanguageModel, Attachment]:
    """A tiny model after two steps of full tuning, its tensors lying as the loop leaves them."""
    model = tiny_model(name, dtype=dtype)
    attachment = Full(**settings).attach(model, "default", seed=0)
    flat = FlatTrainables(attachment.groups, workers=1)
    optimizer = FlatAdamW(flat, AdamW())
    for _ in range(2):
        flat.clear_gradients()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
            loss = -model.forward(batch_of(LENGTHS, model.layout)).logprob_N.sum()
        flat.add_gradients(0, torch.autograd.grad(loss, flat.tensors, allow_unused=True))
        flat.sum_gradients()
        optimizer.step(0.01)
    return model, attachment


def moved(model: LanguageModel, name: str) -> set[str]:
    """The weights that are not those that the tiny model begins with."""
    before = tiny_model(name).hf.state_dict()
    return {key for key, value in model.hf.state_dict().items() if not torch.equal(value, before[key])}


@pytest.mark.parametrize("name", [*NAMES, *MIXTURES])
def test_all_weights_train_and_the_loss_falls(name: str) -> None:
    model, attachment = trained(name)
    assert set(attachment.trainables) == {key for key, _ in model.hf.named_parameters()}
    assert attachment.num_trainable == sum(p.numel() for p in model.hf.parameters())
    still = set(attachment.trainables) - moved(model, name)
    assert not still - without_gradient(name), "weights that the loss depends on stayed where they were"
    assert float(logprobs(model, None).mean()) > float(logprobs(tiny_model(name), None).mean())
    assert attachment.adapter is None
    assert attachment.lowest_layer is None


def without_gradient(name: str) -> set[str]:
    """Weights that no loss depends on: a key bias shifts all scores of a query alike."""
    keys = [key for key, _ in tiny_model(name).hf.named_parameters() if key.endswith("k_proj.bias")]
    return set(keys) if name != "phi" else set()


@pytest.mark.parametrize(
    ("settings", "places"),
    [
        ({"layers": (1,)}, ("model.layers.1.",)),
        ({"layers": (0, 1)}, ("model.layers.0.", "model.layers.1.")),
        ({"layers": (0,), "train_head": True}, ("model.layers.0.", "model.norm.", "lm_head.")),
        ({"layers": (1,), "train_embedding": True}, ("model.layers.1.", "model.embed_tokens.")),
        ({"layers": (), "train_head": True}, ("model.norm.", "lm_head.")),
        ({"train_embedding": False}, ("model.layers.", "model.norm.", "lm_head.")),
        ({"train_embedding": False, "train_head": False}, ("model.layers.",)),
    ],
)
def test_only_the_chosen_parts_move(settings: dict[str, Any], places: tuple[str, ...]) -> None:
    model, attachment = trained("mistral", **settings)
    expected = {key for key in tiny_model("mistral").hf.state_dict() if key.startswith(places)}
    assert set(attachment.trainables) == expected
    assert moved(model, "mistral") == expected
    frozen = {key for key, p in model.hf.named_parameters() if not p.requires_grad}
    assert frozen == {key for key, _ in model.hf.named_parameters()} - expected


def test_the_backward_pass_ends_at_the_lowest_trained_layer() -> None:
    for settings, lowest in (
        ({"layers": (1,)}, 1),
        ({"layers": (0, 1)}, 0),
        ({"layers": (), "train_head": True}, 2),
        ({"layers": (1,), "train_embedding": True}, None),
    ):
        assert Full(**settings).attach(tiny_model("mistral"), "default", seed=0).lowest_layer == lowest


def test_vectors_do_not_decay_and_each_tensor_is_in_one_group() -> None:
    attachment = Full().attach(tiny_model("gpt2"), "default", seed=0)
    matrices, vectors = attachment.groups
    assert (matrices.decays, vectors.decays) == (True, False)
    assert {tensor.dim() for tensor in matrices.tensors.values()} == {2}
    assert {tensor.dim() for tensor in vectors.tensors.values()} == {1}
    assert not set(matrices.tensors) & set(vectors.tensors)


def test_a_vector_without_gradient_keeps_its_bits_under_weight_decay() -> None:
    model = tiny_model("gpt2")
    attachment = Full().attach(model, "default", seed=0)
    flat = FlatTrainables(attachment.groups, workers=1)
    optimizer = FlatAdamW(flat, AdamW(weight_decay=0.5))
    before = flat.named()
    flat.clear_gradients()
    flat.sum_gradients()
    optimizer.step(0.1)
    for key, tensor in flat.named().items():
        if tensor.dim() == 1:
            assert torch.equal(tensor, before[key])
        else:
            assert_near(tensor, before[key] * (1 - 0.1 * 0.5), 1e-6)


def test_a_head_that_is_tied_to_the_embedding_counts_once_and_stays_tied() -> None:
    model, attachment = trained("gpt2")
    assert "transformer.wte.weight" in attachment.trainables
    assert "lm_head.weight" not in attachment.trainables
    head, table = (model.hf.get_submodule(name).weight for name in ("lm_head", "transformer.wte"))
    assert head is table
    with pytest.raises(RecipeError) as refused:
        Full(layers=(0,), train_head=True).attach(tiny_model("gpt2"), "default", seed=0)
    assert refused.value.field == "method.train_head"


@pytest.mark.parametrize("layers", [(2,), (-1,), (0, 7)])
def test_a_layer_that_is_not_there_is_refused_with_the_field(layers: tuple[int, ...]) -> None:
    with pytest.raises(RecipeError) as refused:
        Full(layers=layers).attach(tiny_model("llama"), "default", seed=0)
    assert refused.value.field == "method.layers"
    assert "0 to 1" in refused.value.mend


def test_nothing_to_train_is_refused_with_the_field() -> None:
    with pytest.raises(RecipeError) as refused:
        Full(layers=()).attach(tiny_model("llama"), "default", seed=0)
    assert refused.value.field == "method.layers"


@pytest.mark.parametrize("name", [*NAMES, *MIXTURES])
def test_what_is_written_loads_in_plain_transformers_and_computes_the_same(name: str, tmp_path: Path) -> None:
    model, attachment = trained(name)
    attachment.write(tmp_path, quiet)
    plain, info = AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation=plain_attention(name), output_loading_info=True, dtype=torch.float32
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert_near(plain_logprobs(plain.eval(), random_rows(LENGTHS)), logprobs(model, None))
    assert "luthier" not in (tmp_path / "config.json").read_text()
    assert not list(tmp_path.glob("*.bin"))


def test_the_tokenizer_is_written_beside_the_model(tmp_path: Path) -> None:
    model = tiny_model("llama")
    Full().attach(model, "default", seed=0).write(tmp_path, quiet)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("w5 w9")["input_ids"] == model.tokenizer("w5 w9")["input_ids"] == [5, 9]


@pytest.mark.parametrize("layers", ["all", (1,)])
def test_a_half_precision_model_trains_in_fp32_and_is_written_in_its_own_format(layers: Any, tmp_path: Path) -> None:
    model, attachment = trained("llama", torch.bfloat16, layers=layers)
    assert {tensor.dtype for tensor in attachment.trainables.values()} == {torch.float32}
    attachment.write(tmp_path, quiet)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    for key, parameter in loaded.named_parameters():
        assert torch.equal(parameter, model.hf.get_parameter(key).to(torch.bfloat16))


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon", "gemma"])
@pytest.mark.parametrize("part", ["head", "embedding", "layers"])
def test_a_merged_lora_is_written_whole_even_where_it_untied_the_head(name: str, part: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    anatomy = model.anatomy
    targets = anatomy.linears if part == "layers" else (getattr(anatomy, part),)
    attachment = LoRA(rank=2, targets=targets).attach(model, "default", seed=0)
    randomize(attachment)
    unmerged = logprobs(model)
    assert_apart(unmerged, logprobs(model, None))
    attachment.merge()
    write_model(model, tmp_path, torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=plain_attention(name)).eval()
    assert_near(plain_logprobs(plain, random_rows(LENGTHS)), unmerged)


@pytest.mark.parametrize("name", [*NAMES, *MIXTURES])
@pytest.mark.parametrize("settings", [{"layers": (1,)}, {"layers": (0,), "train_embedding": True}])
def test_chosen_layers_of_a_half_precision_model_train_among_frozen_ones(name: str, settings: dict[str, Any]) -> None:
    model, attachment = trained(name, torch.bfloat16, **settings)
    frozen = {key: p for key, p in model.hf.named_parameters() if key not in attachment.trainables}
    before = dict(tiny_model(name, dtype=torch.bfloat16).hf.named_parameters())
    assert all(torch.equal(p.to(torch.bfloat16), before[key]) for key, p in frozen.items())
    assert {p.dtype for p in frozen.values() if p.dim() > 1} == {torch.bfloat16}
    assert {p.dtype for p in attachment.trainables.values()} == {torch.float32}
    assert not all(torch.equal(p, before[key].float()) for key, p in attachment.trainables.items())


def test_a_tied_head_is_written_once(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_model("gpt2", dtype=dtype)
        Full().attach(model, "default", seed=0).write(tmp_path, quiet)
        with safe_open(tmp_path / "model.safetensors", "pt") as file:
            assert set(file.keys()) == {key for key, _ in model.hf.named_parameters()}


def test_merging_freezes_the_weights_again() -> None:
    model = tiny_model("llama")
    Full().attach(model, "default", seed=0).merge()
    assert not any(p.requires_grad for p in model.hf.parameters())


# ── an objective that asks nothing of the head ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["llama", "gemma2", "bert"])
def test_a_head_that_nothing_asks_does_not_train_but_what_it_shares_with_the_embedding_does(name: str) -> None:
    model = tiny_model(name, purpose="words")
    model.is_head_read = False
    trained = Full().attach(model, "default", seed=0).trainables
    head = model.anatomy.head
    assert f"{model.anatomy.embedding}.weight" in trained
    assert not any(key.startswith(tuple(part.name for part in model.anatomy.head_parts)) for key in trained)
    rest = {key for key, _ in model.hf.named_parameters() if not key.startswith((f"{head}.", "cls."))}
    assert set(trained) == rest


def test_what_would_only_train_a_head_that_nothing_asks_is_refused() -> None:
    for method, field in (
        (TopLayers(include_head=True), "method.include_head"),
        (LoRA(targets=("lm_head", "q_proj")), "method.targets"),
    ):
        model = tiny_model("llama")
        model.is_head_read = False
        with pytest.raises(RecipeError, match="asks nothing") as caught:
            method.attach(model, "default", seed=0)
        assert caught.value.field == field
    model = tiny_model("llama")
    model.is_head_read = False
    assert not any("lm_head" in name for name in TopLayers().attach(model, "default", seed=0).trainables)
    model.new_tokens = (5, 6)
    rows = [name for name in LoRA().attach(model, "default", seed=0).trainables if name.endswith(".rows")]
    assert rows == [f"{model.anatomy.embedding}.rows"]
