"""Configs by name: well-known models as their makers published them, for plans without a file, and small ones to train from nothing."""

from __future__ import annotations

from typing import Any

_LLAMA_1: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
_LLAMA_3: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


def _sized(
    base: dict[str, Any], hidden: int, inner: int, layers: int, heads: int, kv_heads: int | None = None
) -> dict[str, Any]:
    return base | {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads if kv_heads is None else kv_heads,
    }


NAMED: dict[str, dict[str, Any]] = {
    "llama-7b": _sized(_LLAMA_1, 4096, 11008, 32, 32),
    "llama-13b": _sized(_LLAMA_1, 5120, 13824, 40, 40),
    "llama-33b": _sized(_LLAMA_1, 6656, 17920, 60, 52),
    "llama-65b": _sized(_LLAMA_1, 8192, 22016, 80, 64),
    "tinyllama-1.1b": _sized(_LLAMA_1, 2048, 5632, 22, 32, 4),
    "llama-3-8b": _sized(_LLAMA_3, 4096, 14336, 32, 32, 8),
    "llama-3-70b": _sized(_LLAMA_3, 8192, 28672, 80, 64, 8),
    "mistral-7b": _sized(
        _LLAMA_1 | {"model_type": "mistral", "max_position_embeddings": 32768, "rms_norm_eps": 1e-5},
        4096,
        14336,
        32,
        32,
        8,
    ),
    "llama-2m": {
        "model_type": "llama",
        "vocab_size": 1024,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    },
    "bert-2m": {
        "model_type": "bert",
        "vocab_size": 1024,
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
    },
    "modernbert-2m": {
        "model_type": "modernbert",
        "vocab_size": 1024,
        "hidden_size": 192,
        "intermediate_size": 448,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "max_position_embeddings": 1024,
        "global_attn_every_n_layers": 1,
        # Of the tokenizer that it is drawn for, not that of the published models.
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")),
    },
    "t5-2m": {
        "model_type": "t5",
        "vocab_size": 1024,
        "d_model": 160,
        "d_kv": 40,
        "d_ff": 448,
        "num_heads": 4,
        "num_layers": 3,
        "num_decoder_layers": 3,
    },
}
