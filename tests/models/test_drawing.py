"""A model at random weights: drawn as transformers draws it, each part by its name; its config fitted to its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models.tiny import CONFIGS
from small_tokenizers import byte_level
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from luthier.data.tokenizer_training import TokenizerSettings, trained, wrapped
from luthier.errors import LuthierError, NotFound, RecipeError
from luthier.models.drawing import draw_model, with_values
from luthier.models.loading import load_model
from luthier.models.settings import ModelSettings
from luthier.models.shapes import NAMED
from luthier.models.sources import _class_of, fingerprint, locate, read_config, read_tokenizer, read_weights

SMALL = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {"model_type": "llama", **SMALL}
BART = {
    "model_type": "bart", "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40,
}  # fmt: skip
T5 = {"model_type": "t5", "d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 40, "num_layers": 1}


def nothing(text: str) -> None:
    """Take a sentence, and do nothing."""


def drawn(kind: str, values: dict[str, Any], seed: int = 3) -> PreTrainedModel:
    config = AutoConfig.for_model(kind, **values)
    return draw_model(_class_of(config), config, torch.float32, "eager", seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tokenizer with all of a decoder's special tokens."""
    path = tmp_path_factory.mktemp("tokenizers") / "decoder"
    tokenizer = byte_level()
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.save_pretrained(path)
    return path


def located(config: Any, tokenizer: Path | None, seed: int = 0) -> Any:
    settings = ModelSettings(config=config, tokenizer=None if tokenizer is None else str(tokenizer))
    return locate(settings, nothing, seed=seed)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_is_drawn_from_what_transformers_draws_it_from(name: str):
    kind, values = CONFIGS[name]
    config = AutoConfig.for_model(kind, **values)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = _class_of(config).from_config(config, dtype=torch.float32, attn_implementation="eager")
    ours = drawn(kind, values)
    assert type(ours) is type(theirs)
    own, buffers = dict(ours.named_parameters()), dict(ours.named_buffers())
    assert own.keys() == dict(theirs.named_parameters()).keys(), "what is tied there is tied here"
    for key, tensor in theirs.named_parameters():
        tensor = tensor.detach()
        if tensor.std() == 0:
            torch.testing.assert_close(own[key], tensor, msg=key)
        elif tensor.numel() > 500:
            torch.testing.assert_close(own[key].detach().std(), tensor.std(), rtol=0.15, atol=0, msg=key)
            assert abs(float(own[key].detach().mean())) < 0.2 * float(tensor.std())
    for key, tensor in theirs.named_buffers():
        torch.testing.assert_close(buffers[key], tensor, msg=key)


def test_a_part_is_drawn_by_its_name_and_the_seed_and_leaves_other_draws_alone():
    values = CONFIGS["llama"][1]
    before = torch.random.get_rng_state()
    first = drawn("llama", values).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    deeper = drawn("llama", {**values, "num_hidden_layers": 3, "vocab_size": 70}).state_dict()
    other = drawn("llama", values, seed=4).state_dict()
    for name, tensor in first.items():
        assert tensor.shape != deeper[name].shape or torch.equal(tensor, deeper[name])
        assert tensor.std() == 0 or tensor.shape[0] == 1 or not torch.equal(tensor, other[name])
    assert first.keys() < deeper.keys()
    layer = "model.layers.{}.mlp.up_proj.weight"
    assert not torch.equal(first[layer.format(0)], first[layer.format(1)])


def test_the_vocabulary_and_the_special_tokens_are_the_tokenizers(folder: Path):
    config = read_config(located(LLAMA, folder))
    tokenizer = read_tokenizer(located(LLAMA, folder))
    assert config.vocab_size == len(tokenizer)
    ids = (config.pad_token_id, config.bos_token_id, config.eos_token_id)
    assert ids == (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert read_config(located({**LLAMA, "vocab_size": len(tokenizer) + 28}, folder)).vocab_size == len(tokenizer) + 28


@pytest.mark.parametrize(("values", "start"), [(T5, "<pad>"), (BART, "<pad>")], ids=["t5", "bart"])
def test_a_new_encoder_decoder_begins_with_padding_and_ends_with_its_end_token(
    values: dict[str, Any], start: str, tmp_path: Path
):
    asked = TokenizerSettings(purpose="encoder-decoder", vocab_size=370)
    wrapped(trained(["some text, some more text, and some text again"] * 3, asked, nothing), asked).save_pretrained(
        tmp_path
    )
    model = load_model(ModelSettings(config=values, tokenizer=str(tmp_path)), nothing)
    assert model.tokenizer.convert_ids_to_tokens(model.answer_start) == start
    assert model.hf.config.eos_token_id == model.tokenizer.convert_tokens_to_ids("</s>")
    assert model.hf.config.to_dict().get("forced_eos_token_id") in (None, model.hf.config.eos_token_id)


def test_a_new_encoder_fills_masks(folder: Path):
    source = located({"model_type": "bert", **SMALL}, folder)
    assert type(read_weights(source, read_config(source), torch.float32)).__name__ == "BertForMaskedLM"


def test_a_config_s_own_special_tokens_are_the_tokenizer_s(folder: Path):
    source = located("modernbert-2m", folder)
    config, tokenizer = read_config(source), read_tokenizer(source)
    for role in ("pad", "eos", "cls", "sep"):
        assert getattr(config, f"{role}_token_id") == getattr(tokenizer, f"{role}_token_id")


def test_a_config_is_found_by_name_file_folder_and_value(folder: Path, tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "dtype": "bfloat16", "architectures": ["X"]}))
    expected = read_config(located(LLAMA, folder)).to_dict()
    for given in (tmp_path, tmp_path / "config.json"):
        assert read_config(located(str(given), folder)).to_dict() == expected
    AutoConfig.for_model(**LLAMA).save_pretrained(folder)
    assert located(str(folder), None).folder == folder, "a folder with both needs no second name"
    (folder / "config.json").unlink()
    assert read_config(located("llama-2m", folder)).hidden_size == NAMED["llama-2m"]["hidden_size"]


@pytest.mark.parametrize("name", ["llama-2m", "bert-2m", "modernbert-2m", "t5-2m"])
def test_the_small_named_configs_have_about_two_million_weights(name: str):
    values = dict(NAMED[name])
    count = drawn(values.pop("model_type"), values).num_parameters()
    assert 1.8e6 < count < 2.2e6


@pytest.mark.parametrize(
    ("config", "found", "mend"),
    [
        ({**LLAMA, "vocab_size": 100}, "vocab_size is 100", "set it to 380"),
        ({**LLAMA, "vocab_size": 32000}, "the tokenizer has 380 tokens", "Take vocab_size out"),
        ({**LLAMA, "eos_token_id": 7}, "eos_token_id is 7, but the tokenizer's is 1", "set it to 1"),
        ({**LLAMA, "hiden_size": 8}, "no 'hiden_size'", "hidden_size"),
        ({**LLAMA, "num_attention_heads": "four"}, "num_attention_heads", "Correct it"),
        ({"hidden_size": 8}, "model_type is None", "llama"),
        ({"model_type": "lama"}, "model_type is 'lama'", "llama"),
        ({**LLAMA, "quantization_config": {"bits": 4}}, "quantized", "Take"),
        ("nowhere/config.json", "There is no config", "Correct the path"),
    ],
)
def test_a_config_that_cannot_be_is_refused_with_the_mend(config: Any, found: str, mend: str, folder: Path):
    with pytest.raises(LuthierError) as raised:
        read_config(located(config, folder))
    assert found in raised.value.found
    assert mend in raised.value.mend
    assert raised.value.field == "model.config"


def test_a_new_model_without_a_tokenizer_is_refused(tmp_path: Path, folder: Path):
    with pytest.raises(RecipeError, match="needs a tokenizer"):
        located(LLAMA, None)
    for empty in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(NotFound) as raised:
            located(LLAMA, empty)
        assert raised.value.field == "model.tokenizer"
    tokenizer = byte_level()
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="no padding token"):
        read_config(located(T5, tmp_path))


def test_the_fingerprint_of_a_new_model_is_that_of_its_config_tokenizer_and_seed(folder: Path, tmp_path: Path):
    def of(config: dict[str, Any], seed: int, tokenizer: Path = folder) -> str:
        return fingerprint(located(config, tokenizer, seed), tmp_path / "cache")

    byte_level(eos="<|end|>").save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + "\n")
    first = of(LLAMA, 0)
    assert first == of(dict(reversed(LLAMA.items())), 0)
    assert len({first, of(LLAMA, 1), of({**LLAMA, "hidden_size": 64}, 0), of(LLAMA, 0, tmp_path / "other")}) == 4


def test_a_new_model_in_half_precision_is_drawn_in_it(folder: Path):
    settings = ModelSettings(config=LLAMA, tokenizer=str(folder), dtype="bf16")
    said: list[str] = []
    model = load_model(settings, said.append, seed=5)
    assert model.dtype == torch.bfloat16
    assert said[0].endswith("bf16, drawn from seed 5, on cpu.")
    assert model.hf.config.architectures == ["LlamaForCausalLM"]
    assert isinstance(model.hf, type(AutoModelForCausalLM.from_config(AutoConfig.for_model(**LLAMA))))


def test_settings_are_named_after_their_config_and_come_with_it():
    assert ModelSettings(config=LLAMA).name == "a new llama"
    assert ModelSettings(config="llama-2m").name == "llama-2m"
    assert with_values(ModelSettings(name="mine", config="llama-2m")).name == "mine"
    assert ModelSettings(config=LLAMA, dtype="bf16").at(Path("there")) == ModelSettings(name="there", dtype="bf16")
    with pytest.raises(ValueError, match="goes with"):
        ModelSettings(name="x", tokenizer="y")
    with pytest.raises(ValueError, match="missing"):
        ModelSettings()
