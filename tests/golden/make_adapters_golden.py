"""Make the golden files of the `adapters` library: tiny random models, adapters saved for them, and what they compute.

Run in an environment of its own, from adapters-requirements.txt. For each model the folder `adapters/MODEL` gets

    config.json, base.safetensors        the base
    CASE/adapter_config.json, …          an adapter with random weights, as the library saves it
    CASE/logits.safetensors              the tokens of two rows, and the logits with the adapter at work
                                         (of an encoder, the last hidden states)

An encoder-decoder answers with each row to the row's end, read backwards.
A fusion has its adapters in `CASE/one` and `CASE/two`. Three things of the library are worked around, and are not in the files:

- Its attention of Llama and Mistral transposes what transformers 4.51 has transposed already, which mixes tokens and
  heads whether there is an adapter or not. That is undone here: every base is checked to compute what transformers does.
- It cannot save a prefix as safetensors, because each layer names the same tensors; they are saved from its pickle, once.
- Of a T5 with its own head it saves all but what Compacters share, and its names lack the module that an AutoAdapterModel has
  around the T5. Both are put in here, and the file is checked to load.

Attention is eager: with sdpa the library's causal mask does not begin after a prefix.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import adapters
import torch
from adapters import (
    AdapterConfig,
    CompacterConfig,
    CompacterPlusPlusConfig,
    DoubleSeqBnConfig,
    ParBnConfig,
    PrefixTuningConfig,
    SeqBnConfig,
)
from adapters.composition import Fuse
from adapters.models.llama import modeling_llama
from adapters.models.mistral import modeling_mistral
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

FOLDER = Path(__file__).parent / "adapters"
NAME = "golden"
TOKENS = torch.randint(3, 32, (2, 7), generator=torch.Generator().manual_seed(7))
SOURCES = TOKENS[:, 2:].flip(1)

_LLAMA = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 32, "tie_word_embeddings": False,
}  # fmt: skip
_BERT = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 34,
}  # fmt: skip
_T5 = {
    "vocab_size": 32, "d_model": 16, "d_kv": 3, "d_ff": 24, "num_layers": 1, "num_decoder_layers": 2, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "pad_token_id": 0, "eos_token_id": 1,
    "decoder_start_token_id": 0,
}  # fmt: skip
_BART = {
    "vocab_size": 32, "d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 32,
    "scale_embedding": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}  # fmt: skip
ENCODERS = ("bert", "roberta")
ENCODER_DECODERS = ("t5", "t5-gated", "bart")
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _LLAMA),
    "llama-all-heads": ("llama", {**_LLAMA, "num_key_value_heads": 4}),
    "mistral": ("mistral", {**_LLAMA, "num_key_value_heads": 4, "sliding_window": None}),
    "qwen2": ("qwen2", _LLAMA),
    "gpt2": ("gpt2", {"vocab_size": 32, "n_embd": 16, "n_inner": 24, "n_layer": 2, "n_head": 4, "n_positions": 32}),
    "bert": ("bert", _BERT),
    "roberta": ("roberta", {**_BERT, "type_vocab_size": 1}),
    "t5": ("t5", _T5),
    "t5-gated": ("t5", {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "bart": ("bart", _BART),
}

_BOTTLENECKS = {
    "houlsby": DoubleSeqBnConfig(reduction_factor=4),
    "pfeiffer": SeqBnConfig(reduction_factor=5, leave_out=[0]),
    "parallel": ParBnConfig(reduction_factor=2),
}
_IN_TWO_STACKS = {
    "houlsby": DoubleSeqBnConfig(reduction_factor=4),
    "pfeiffer-in-part": SeqBnConfig(reduction_factor=5, leave_out=[1]),
    "parallel": ParBnConfig(reduction_factor=2),
}
_AFTER_EACH = {
    "houlsby-cross": DoubleSeqBnConfig(reduction_factor=4, cross_adapter=True),
}
_COMPACTERS = {
    "compacter": CompacterConfig(reduction_factor=2, phm_rank=2),
    "compacter-plus-plus": CompacterPlusPlusConfig(reduction_factor=4),
}
_PREFIXES = {
    "prefix": PrefixTuningConfig(flat=True, prefix_length=3),
    "prefix-network": PrefixTuningConfig(prefix_length=3, bottleneck_size=6),
}
CASES: dict[str, dict[str, AdapterConfig]] = {
    "llama": {**_BOTTLENECKS, **_COMPACTERS},
    "llama-all-heads": _PREFIXES,
    "mistral": {"pfeiffer": _BOTTLENECKS["pfeiffer"], **_PREFIXES},
    "qwen2": _BOTTLENECKS,
    "gpt2": {**_BOTTLENECKS, **_COMPACTERS, **_PREFIXES},
    "bert": {**_BOTTLENECKS, **_COMPACTERS},
    "roberta": {"pfeiffer": _BOTTLENECKS["pfeiffer"]},
    "t5": {**_IN_TWO_STACKS, **_COMPACTERS, **_PREFIXES},
    "t5-gated": {**_AFTER_EACH, "prefix": _PREFIXES["prefix"]},
    "bart": {**_IN_TWO_STACKS, **_AFTER_EACH, **_COMPACTERS, **_PREFIXES},
}
FUSIONS = {"llama": SeqBnConfig(reduction_factor=4), "gpt2": DoubleSeqBnConfig(reduction_factor=4)}


def randomize(model: PreTrainedModel, mark: str = "", size: float = 0.3) -> None:
    """Give the parameters whose names hold a mark values that their names decide."""
    for key, parameter in model.named_parameters():
        if mark in key:
            generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * size)
            if "norm" in key or "ln_" in key:
                parameter.data.add_(key.endswith("weight"))


def base_of(name: str) -> PreTrainedModel:
    """The base, the same at every call."""
    model_type, values = MODELS[name]
    config = AutoConfig.for_model(model_type, **values)
    auto = AutoModelForCausalLM
    if name in ENCODERS:
        auto = AutoModelForSequenceClassification
    elif name in ENCODER_DECODERS:
        auto = AutoModelForSeq2SeqLM
    model = auto.from_config(config, attn_implementation="eager").eval()
    randomize(model)
    return model


def transposed_back(attention: Callable[..., Any]) -> Callable[..., Any]:
    """An attention whose output the library may transpose once more."""

    def attend(*args: Any, **kwargs: Any) -> Any:
        output, weights = attention(*args, **kwargs)
        return output.transpose(1, 2), weights

    return attend


def outputs(model: PreTrainedModel) -> torch.Tensor:
    """What is compared: a decoder's logits, an encoder's last hidden states."""
    if model.config.model_type in ENCODERS:
        return model(TOKENS, output_hidden_states=True).hidden_states[-1]
    if model.config.is_encoder_decoder:
        return model(input_ids=SOURCES, decoder_input_ids=TOKENS, use_cache=False).logits
    return model(TOKENS, use_cache=False).logits


def with_library(name: str) -> PreTrainedModel:
    """The base under the library, which computes the same."""
    model = base_of(name)
    expected = outputs(model)
    adapters.init(model)
    torch.testing.assert_close(outputs(model.eval()), expected)
    return model


def save_base(name: str, folder: Path) -> None:
    """Config and weights."""
    model_type, values = MODELS[name]
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, **values}, indent=1) + "\n")
    save_file({key: tensor.clone() for key, tensor in base_of(name).state_dict().items()}, folder / "base.safetensors")


@torch.no_grad()
def save_logits(model: PreTrainedModel, folder: Path) -> None:
    """Two rows of random tokens, and the model's logits."""
    save_file({"tokens": TOKENS, "logits": outputs(model).clone()}, folder / "logits.safetensors")


def save_case(name: str, case: str, config: AdapterConfig) -> None:
    """One adapter on a base."""
    model = with_library(name)
    model.add_adapter(NAME, config=config, set_active=True)
    randomize(model, f".{NAME}.")
    model.eval()
    folder = FOLDER / name / case
    if isinstance(config, PrefixTuningConfig):
        model.save_adapter(str(folder), NAME, with_head=False)
        pickle = folder / "pytorch_adapter.bin"
        tensors = torch.load(pickle, weights_only=True)
        pickle.unlink()
        save_file({key: t for key, t in tensors.items() if ".pool." not in key}, folder / "adapter.safetensors")
    else:
        model.save_adapter(str(folder), NAME, with_head=False, use_safetensors=True)
    if model.config.model_type == "t5":
        name_as_in_an_adapter_model(model, folder / "adapter.safetensors")
    save_logits(model, folder)
    check_loads(name, folder)


def name_as_in_an_adapter_model(model: PreTrainedModel, path: Path) -> None:
    """Put the module that an AutoAdapterModel has around a T5 before the names in a file, and add what all layers share."""
    shared = {key: tensor for key, tensor in model.state_dict().items() if key.startswith("shared_parameters.")}
    tensors = {**load_file(path), **shared}
    save_file({f"transformer.{key}": tensor.clone() for key, tensor in tensors.items()}, path)


@torch.no_grad()
def check_loads(name: str, folder: Path) -> None:
    """Raise AssertionError unless the library computes the logits in a folder with the adapter there."""
    model = with_library(name)
    model.load_adapter(str(folder), use_safetensors=True, set_active=True)
    expected = load_file(folder / "logits.safetensors")["logits"]
    torch.testing.assert_close(outputs(model.eval()), expected)


def save_fusion(name: str, config: AdapterConfig) -> None:
    """Two adapters fused. The library's bias of the query, which the paper's formula lacks, is zero; that of the key cancels."""
    model = with_library(name)
    for part in ("one", "two"):
        model.add_adapter(part, config=config)
        randomize(model, f".{part}.")
    setup = Fuse("one", "two")
    model.add_adapter_fusion(setup)
    model.set_active_adapters(setup)
    randomize(model, ".adapter_fusion_layer.")
    for key, parameter in model.named_parameters():
        if key.endswith(".query.bias"):
            parameter.data.zero_()
    model.eval()
    folder = FOLDER / name / "fusion"
    folder.mkdir()
    for part in ("one", "two"):
        model.save_adapter(str(folder / part), part, with_head=False, use_safetensors=True)
    model.save_adapter_fusion(str(folder), setup, use_safetensors=True)
    save_logits(model, folder)


def main() -> None:
    """Make all files anew."""
    for module in (modeling_llama, modeling_mistral):
        module.eager_attention_forward = transposed_back(module.eager_attention_forward)
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name in MODELS:
        (FOLDER / name).mkdir(parents=True)
        save_base(name, FOLDER / name)
        for case, config in CASES[name].items():
            save_case(name, case, config)
        if name in FUSIONS:
            save_fusion(name, FUSIONS[name])


if __name__ == "__main__":
    main()
