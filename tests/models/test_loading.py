"""Loading a base model from an ordinary transformers folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models.rows import batch_of
from models.tiny import PLAIN, plain_model, tiny_model, tiny_tokenizer
from models.tuned import LENGTHS, logprobs, quiet
from near import assert_near
from transformers import MptConfig, MptForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from luthier.errors import RecipeError, ResourceError
from luthier.models.fast_layers import FastGatedMLP, FastRMSNorm
from luthier.models.language_model import FastModel
from luthier.models.loading import choose_device, load_model
from luthier.models.settings import ModelSettings


def folder_of(name: str, folder: Path) -> ModelSettings:
    """A tiny model on disk."""
    plain_model(name).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return ModelSettings(name=str(folder), device="cpu")


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "gpt_neox", "opt-norm-after", "phi", "falcon-new"])
def test_a_folder_is_loaded_frozen_and_computes_what_its_weights_say(name: str, tmp_path: Path) -> None:
    said: list[str] = []
    model = load_model(folder_of(name, tmp_path), said.append)
    assert_near(logprobs(model, None), logprobs(tiny_model(name), None), 1e-7)
    assert not any(p.requires_grad for p in model.hf.parameters())
    assert not model.hf.training
    assert model.dtype == torch.float32
    assert "fp32, on cpu" in said[-1]
    assert model.identity.name == str(tmp_path)


def test_the_hash_of_a_model_is_that_of_its_weights_and_not_of_its_place(tmp_path: Path) -> None:
    first, second = (load_model(folder_of("llama", tmp_path / place), quiet) for place in "ab")
    other = load_model(folder_of("mistral", tmp_path / "c"), quiet)
    assert first.identity.sha256 == second.identity.sha256 != other.identity.sha256


def test_the_switches_choose_between_our_layers_and_those_of_transformers(tmp_path: Path) -> None:
    settings = folder_of("llama", tmp_path)
    kinds = [
        (type(model.hf.model.norm), type(model.hf.model.layers[0].mlp), model.hf.config._attn_implementation)
        for model in (load_model(settings, quiet), load_model(settings, quiet, fast=PLAIN))
    ]
    assert kinds[0] == (FastRMSNorm, FastGatedMLP, "luthier")
    assert kinds[1] == (LlamaRMSNorm, LlamaMLP, "luthier-reference")
    half = load_model(settings, quiet, fast=FastModel(norm=False))
    assert type(half.hf.model.norm) is LlamaRMSNorm
    assert type(half.hf.model.layers[0].mlp) is FastGatedMLP


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_number_format_of_the_recipe_is_that_of_the_weights(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    settings = folder_of("llama", tmp_path).model_copy(update={"dtype": name})
    model = load_model(settings, quiet)
    assert {p.dtype for p in model.hf.parameters()} == {dtype}
    assert bool(torch.isfinite(model.forward(batch_of(LENGTHS, "packed")).logprob_N).all())


def test_a_gpu_that_is_not_there_is_refused_with_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert choose_device("cuda") == choose_device("auto") == torch.device("cuda")
    with pytest.raises(ResourceError, match="this machine has 2 CUDA devices") as refused:
        choose_device("cuda:2")
    assert refused.value.field == "model.device"


def test_a_family_that_is_not_known_is_refused_with_the_field(tmp_path: Path) -> None:
    MptForCausalLM(MptConfig(vocab_size=61, d_model=8, n_layers=1, n_heads=2)).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(RecipeError) as refused:
        load_model(ModelSettings(name=str(tmp_path), device="cpu"), quiet)
    assert refused.value.field == "model"
    assert "mpt" in refused.value.found
