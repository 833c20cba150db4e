"""A small random model of each kind that has a place in GGUF files, as the parts of its config."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

_COMMON = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 256, "bos_token_id": None,
}  # fmt: skip
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
_WIDE = {**_GROUPED, "head_dim": 32}
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
_FALCON = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": None, "parallel_attn": True,
    "bias": False, "alibi": False,
}  # fmt: skip

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**_GROUPED, "tie_word_embeddings": True}),
    "llama, stretched": ("llama", {**_GROUPED, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "llama 3": ("llama", {**_GROUPED, "rope_parameters": _LLAMA3}),
    "qwen2": ("qwen2", _GROUPED),
    "qwen3": ("qwen3", _WIDE),
    "gemma2": ("gemma2", {**_WIDE, "query_pre_attn_scalar": 32, "sliding_window": 16}),
    "gemma3": ("gemma3_text", {**_WIDE, "num_hidden_layers": 6, "query_pre_attn_scalar": 32, "sliding_window": 16}),
    "phi3": ("phi3", {**_GROUPED, "sliding_window": None, "original_max_position_embeddings": 256}),
    "falcon": ("falcon", {**_FALCON, "multi_query": True, "new_decoder_architecture": False}),
    "gpt2": ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}),
}  # fmt: skip
UNREAD_BY_TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("gemma", {**_WIDE, "hidden_activation": "gelu_pytorch_tanh"}),
    "falcon 40b": ("falcon", {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "mistral": ("mistral", {**_WIDE, "sliding_window": 128}),
    "phi": ("phi", {**_COMMON, "partial_rotary_factor": 0.5, "layer_norm_eps": 1e-4}),
}


def write_shape(shape: tuple[str, dict[str, Any]], folder: Path, words: Path) -> PreTrainedModel:
    """Write a model of a shape, every one of its numbers random, with the tokenizer of another folder; return it."""
    kind, parts = shape
    tokenizer = AutoTokenizer.from_pretrained(words)
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **ids, **parts))
        with torch.no_grad():
            for parameter in hf.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    hf.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return hf.eval()


def read_by_table(file: Path, hf: PreTrainedModel, architecture: gguf.MODEL_ARCH) -> PreTrainedModel:
    """A file of fp32 read by the gguf package's own table of names into a model of the config of `hf`, every weight of it."""
    read = copy.deepcopy(hf)
    names = gguf.get_tensor_name_map(architecture, hf.config.num_hidden_layers)
    tensors = {each.name: torch.from_numpy(np.array(each.data)) for each in gguf.GGUFReader(file).tensors}
    with torch.no_grad():
        for own, parameter in read.named_parameters():
            name = names.get_name(own, try_suffixes=(".weight", ".bias"))
            assert name is not None, own
            parameter.copy_(_as_in_transformers(own, tensors[name], hf))
    return read.eval()


def _as_in_transformers(own: str, tensor: Tensor, hf: PreTrainedModel) -> Tensor:
    """A file's tensor in transformers' order: of Gemma's norms it holds 1 + w, of a Llama's heads the pairs that rotate."""
    kind, config = hf.config.model_type, hf.config
    if kind == "gemma" and "norm" in own:
        return tensor - 1
    if kind == "mistral" and (".q_proj." in own or ".k_proj." in own):
        heads_HEI = tensor.view(-1, config.head_dim, tensor.shape[1])
        return torch.cat([heads_HEI[:, 0::2], heads_HEI[:, 1::2]], dim=1).reshape(tensor.shape)
    return tensor
