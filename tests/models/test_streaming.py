"""A base that is quantized while it is read: which layers, in which form, and how much of it is held at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models.test_loading import folder_of
from models.tiny import tiny_model, tiny_tokenizer
from models.tuned import logprobs, quiet
from near import assert_near
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from luthier.errors import DataError, LuthierError, RecipeError
from luthier.models.anatomy import weight_of
from luthier.models.language_model import LanguageModel
from luthier.models.loading import load_model
from luthier.models.settings import ModelSettings
from luthier.quantization.formats import quantize
from luthier.quantization.packed import QuantizedLinear
from luthier.quantization.settings import QuantizationSettings

FAMILIES = ["llama", "gemma2", "gpt2", "gpt_neox", "opt-norm-after", "phi", "falcon-new"]


def loaded(name: str, folder: Path, **settings: Any) -> LanguageModel:
    """A tiny model whose base is quantized."""
    return load_model(folder_of(name, folder), quiet, quantization=QuantizationSettings(**settings))


def quantized_layers(model: LanguageModel) -> set[str]:
    """The names of the layers over packed weights."""
    return {name for name, module in model.hf.named_modules() if isinstance(module, QuantizedLinear)}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_linear_layer_but_the_head_is_packed_and_nothing_else(name: str, tmp_path: Path) -> None:
    model = loaded(name, tmp_path)
    assert quantized_layers(model) == set(model.anatomy.linears)
    plain = tiny_model(name).hf
    kept = {
        key: tensor for key, tensor in plain.state_dict().items() if key.rpartition(".")[0] not in model.anatomy.linears
    }
    ours = model.hf.state_dict()
    assert all(torch.equal(ours[key], tensor) for key, tensor in kept.items())
    for layer in model.anatomy.linears:
        expected = quantize(layer, weight_of(plain.get_submodule(layer)), QuantizationSettings())
        assert torch.equal(weight_of(model.hf.get_submodule(layer)), expected.dense(torch.float32))
        bias = dict(plain.get_submodule(layer).named_parameters()).get("bias")
        own = model.hf.get_submodule(layer).bias
        assert (bias is None) == (own is None)
        assert bias is None or torch.equal(bias, own)
    assert not any(parameter.requires_grad for parameter in model.hf.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_it_computes_what_a_plain_model_with_the_unpacked_weights_does(name: str, tmp_path: Path) -> None:
    model, plain = loaded(name, tmp_path), tiny_model(name)
    with torch.no_grad():
        for layer in model.anatomy.linears:
            weight = plain.hf.get_submodule(layer).get_parameter("weight")
            unpacked = weight_of(model.hf.get_submodule(layer))
            weight.copy_(
                unpacked
                if weight.shape == unpacked.shape and isinstance(plain.hf.get_submodule(layer), nn.Linear)
                else unpacked.t()
            )
    assert_near(logprobs(model, None), logprobs(plain, None), 1e-5)


@pytest.mark.parametrize(
    ("settings", "kinds"),
    [
        ({"kind": "fp4", "block": 32, "double": False}, {"fp4"}),
        ({"kind": "int8"}, {"int8"}),
        ({"kind": "nf4", "block": 256}, {"nf4"}),
    ],
)
def test_the_format_is_the_one_that_is_asked_for(settings: dict[str, Any], kinds: set[str], tmp_path: Path) -> None:
    model = loaded("llama", tmp_path, **settings)
    assert {module.packed.kind for module in model.hf.modules() if isinstance(module, QuantizedLinear)} == kinds


def test_layers_are_chosen_and_left_out_by_name_and_by_role(tmp_path: Path) -> None:
    model = loaded("llama", tmp_path / "a", targets=["role:query", "down_proj"])
    assert {name.rpartition(".")[2] for name in quantized_layers(model)} == {"q_proj", "down_proj"}
    model = loaded("llama", tmp_path / "b", skip=["layers.0.mlp.down_proj", "role:value"])
    assert set(model.anatomy.linears) - quantized_layers(model) == {
        name for name in model.anatomy.linears if name.endswith("v_proj") or name.endswith("layers.0.mlp.down_proj")
    }


@pytest.mark.parametrize(
    ("settings", "words", "field"),
    [
        ({"targets": ["gate_prjo"]}, "gate_prjo", "quantization.targets"),
        ({"targets": ["input_layernorm"]}, "input_layernorm", "quantization.targets"),
        ({"targets": ["embed_tokens"]}, "looked up and not multiplied", "quantization.targets"),
        ({"skip": ["nothing_here"]}, "nothing_here", "quantization.skip"),
    ],
)
def test_what_cannot_be_quantized_is_refused_with_the_field(
    settings: dict[str, Any], words: str, field: str, tmp_path: Path
) -> None:
    with pytest.raises(LuthierError, match=words) as refused:
        loaded("llama", tmp_path, **settings)
    assert refused.value.field == field


def test_a_weight_that_holds_no_number_is_refused_with_its_name(tmp_path: Path) -> None:
    settings = folder_of("llama", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"model.layers.1.mlp.up_proj holds numbers that are infinite or not numbers"):
        load_model(settings, quiet, quantization=QuantizationSettings())


def test_a_weight_of_another_shape_is_refused_as_in_any_model(tmp_path: Path) -> None:
    settings = folder_of("llama", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 5)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"of another shape than the config says: .*up_proj.weight"):
        load_model(settings, quiet, quantization=QuantizationSettings())
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"missing: .*up_proj.weight"):
        load_model(settings, quiet, quantization=QuantizationSettings())


def stored_by_bitsandbytes(name: str, folder: Path, **how: Any) -> ModelSettings:
    """A tiny model as transformers saves it after bitsandbytes has quantized it."""
    settings = folder_of(name, folder / "plain")
    config = BitsAndBytesConfig(**how)
    hf = AutoModelForCausalLM.from_pretrained(folder / "plain", quantization_config=config, device_map="cpu")
    hf.save_pretrained(folder / "quantized")
    tiny_tokenizer().save_pretrained(folder / "quantized")
    return settings.model_copy(update={"name": str(folder / "quantized")})


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(("name", "kind"), [("llama", "nf4"), ("llama", "fp4"), ("gpt2", "nf4"), ("opt", "nf4")])
def test_a_model_that_bitsandbytes_quantized_is_read_as_it_is(
    name: str, kind: str, double: bool, tmp_path: Path
) -> None:
    how = {"load_in_4bit": True, "bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": double}
    model = load_model(stored_by_bitsandbytes(name, tmp_path, **how), quiet)
    assert quantized_layers(model) == set(model.anatomy.linears)
    ours = load_model(
        ModelSettings(name=str(tmp_path / "plain"), device="cpu"),
        quiet,
        quantization=QuantizationSettings(kind=kind, double=double),
    )
    for layer in model.anatomy.linears:
        theirs, own = (weight_of(each.hf.get_submodule(layer)) for each in (model, ours))
        assert_near(theirs, own, 1e-3 if double else 0)  # their scales' codes are off by one step here and there
    assert model.dtype == torch.float32


def test_a_model_in_eight_bits_is_read_as_it_is(tmp_path: Path) -> None:
    model = load_model(stored_by_bitsandbytes("llama", tmp_path, load_in_8bit=True), quiet)
    assert quantized_layers(model) == set(model.anatomy.linears)
    ours = load_model(
        ModelSettings(name=str(tmp_path / "plain"), device="cpu"), quiet, quantization=QuantizationSettings(kind="int8")
    )
    for layer in model.anatomy.linears:
        assert torch.equal(*(weight_of(each.hf.get_submodule(layer)) for each in (model, ours)))


def test_a_model_that_comes_quantized_is_not_quantized_again(tmp_path: Path) -> None:
    settings = stored_by_bitsandbytes("llama", tmp_path, load_in_4bit=True)
    with pytest.raises(RecipeError, match="comes quantized already") as refused:
        load_model(settings, quiet, quantization=QuantizationSettings())
    assert refused.value.field == "quantization"


def test_a_format_that_is_not_read_is_refused_with_its_name(tmp_path: Path) -> None:
    settings = folder_of("llama", tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(RecipeError, match="quantized by gptq") as refused:
        load_model(settings, quiet)
    assert "nf4" in refused.value.mend
