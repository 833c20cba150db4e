"""A base that is quantized while it is read: which layers, in which form, and how much of it is held at once."""

from __future__ import annotations

import json
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from models.test_loading import folder_of
from models.tiny import CLASSES, plain_model, tiny_model, tiny_tokenizer
from models.tuned import logprobs, quiet
from near import assert_near
from safetensors.torch import load_file, save_file
from tiny_model import write_tiny_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from luthier.errors import DataError, LuthierError, RecipeError
from luthier.models import loading
from luthier.models.anatomy import weight_of
from luthier.models.heads import ClassHead, Head, WordsHead
from luthier.models.language_model import LanguageModel
from luthier.models.loading import load_model
from luthier.models.settings import ModelSettings
from luthier.quantization.formats import quantize
from luthier.quantization.packed import PackedWeight, QuantizedLinear
from luthier.quantization.settings import QuantizationSettings
from luthier.training.memory import give_back

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
    ("name", "head"),
    [
        ("bert", ClassHead(CLASSES)),
        ("roberta", ClassHead(CLASSES, reads="tokens")),
        ("deberta", ClassHead(CLASSES)),
        ("llama", ClassHead(CLASSES)),
        ("bert", ClassHead(CLASSES, reads="mask")),
        ("bert", WordsHead()),
        ("t5", None),
        ("bart", None),
    ],
    ids=str,
)
def test_encoders_heads_over_classes_and_encoder_decoders_are_packed_as_they_are_read(
    name: str, head: Head | None, tmp_path: Path
) -> None:
    plain_model(name, purpose="words").save_pretrained(tmp_path)
    tiny_tokenizer(has_mask=True).save_pretrained(tmp_path)
    settings = ModelSettings(name=str(tmp_path), device="cpu")
    packed = load_model(settings, quiet, head=head, quantization=QuantizationSettings())
    plain = load_model(settings, quiet, head=head)
    assert quantized_layers(packed) == set(plain.anatomy.linears)
    assert packed.new_head == plain.new_head
    for layer in plain.anatomy.linears:
        expected = quantize(layer, weight_of(plain.hf.get_submodule(layer)), QuantizationSettings())
        assert torch.equal(weight_of(packed.hf.get_submodule(layer)), expected.dense(torch.float32))
        with torch.no_grad():
            weight_of(plain.hf.get_submodule(layer)).copy_(expected.dense(torch.float32))
    kept = packed.hf.state_dict()
    for key, tensor in plain.hf.state_dict().items():
        assert key.rpartition(".")[0] in plain.anatomy.linears or torch.equal(kept[key], tensor)
    assert_near(logprobs(packed, None), logprobs(plain, None), 1e-5)


SIZES = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4}
"""About 15 million weights in the layers: 60 MB in full precision, 8 MB packed, 4 MB the largest alone."""


def held_apart_from_files() -> int:
    """The bytes that the process holds, but for pages of files."""
    give_back(torch.device("cpu"))
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon:")).split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells pages of files apart")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_model_in_full_precision_is_never_held(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tiny_model(tmp_path, **SIZES)
    whole = sum(tensor.nbytes for tensor in load_file(folder / "model.safetensors").values())
    assert whole > 55e6
    held: list[int] = []
    full: list[weakref.ref[Tensor]] = []

    def looking(name: str, weight_OI: Tensor, settings: QuantizationSettings) -> PackedWeight:
        full.append(weakref.ref(weight_OI))
        packed = quantize(name, weight_OI, settings)
        held.append(held_apart_from_files())
        assert sum(each() is not None for each in full) <= 1, "one at a time"
        return packed

    monkeypatch.setattr(loading, "quantize", looking)
    before = held_apart_from_files()
    settings = ModelSettings(name=str(folder), device="cpu", dtype=dtype)
    model = load_model(settings, quiet, quantization=QuantizationSettings())
    assert len(held) == len(model.anatomy.linears) == 28
    packed_bytes = sum(layer.packed.num_bytes for layer in model.hf.modules() if isinstance(layer, QuantizedLinear))
    assert packed_bytes < whole / 7
    assert max(held) - before < whole / 3, "what is packed so far, and a few weights"


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
        (
            {"skip": ["role:query", "k_proj"], "targets": ["k_proj", "q_proj"]},
            "No layer is quantized",
            "quantization.skip",
        ),
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


@pytest.mark.parametrize(("name", "words"), [("gemma2", "is tied to the embedding"), ("llama", "is the head")])
def test_a_head_that_is_named_is_refused(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"lm_head {words}.*: it cannot be quantized") as refused:
        loaded(name, tmp_path, targets=["lm_head", "q_proj"])
    assert refused.value.field == "quantization.targets"


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


def test_a_model_whose_head_comes_in_few_bits_is_refused_with_the_mend(tmp_path: Path) -> None:
    settings = stored_by_bitsandbytes("llama", tmp_path, load_in_4bit=True, llm_int8_skip_modules=["nothing"])
    assert load_file(tmp_path / "quantized" / "model.safetensors")["lm_head.weight"].dtype == torch.uint8
    with pytest.raises(RecipeError, match="head lm_head is held in few bits") as refused:
        load_model(settings, quiet)
    assert "unquantized" in refused.value.mend


def test_a_model_that_comes_quantized_is_not_quantized_again(tmp_path: Path) -> None:
    settings = stored_by_bitsandbytes("llama", tmp_path, load_in_4bit=True)
    with pytest.raises(RecipeError, match="comes quantized already") as refused:
        load_model(settings, quiet, quantization=QuantizationSettings())
    assert refused.value.field == "quantization"


def test_layers_whose_codes_are_stored_as_another_format_are_read_as_they_are(tmp_path: Path) -> None:
    how = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": torch.bfloat16}
    settings = stored_by_bitsandbytes("llama", tmp_path, **how)
    stored = load_file(tmp_path / "quantized" / "model.safetensors")
    assert stored["model.layers.0.mlp.up_proj.weight"].dtype == torch.bfloat16
    model = load_model(settings, quiet)
    assert quantized_layers(model) == set(model.anatomy.linears)
    plain = ModelSettings(name=str(tmp_path / "plain"), device="cpu")
    ours = load_model(plain, quiet, quantization=QuantizationSettings(double=False))
    for layer in model.anatomy.linears:
        assert torch.equal(*(weight_of(each.hf.get_submodule(layer)) for each in (model, ours)))


def test_a_format_that_is_not_read_is_refused_with_its_name(tmp_path: Path) -> None:
    settings = folder_of("llama", tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(RecipeError, match="quantized by gptq") as refused:
        load_model(settings, quiet)
    assert "nf4" in refused.value.mend
