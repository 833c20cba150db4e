"""What the header of a GGUF file says of a model, read back and compared with the model's config.

A reader that has the config of its own, as transformers is given it here, would not see that the file says something else, and
llama.cpp computes what the file says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
from transformers import PreTrainedConfig

from luthier.errors import ExportMismatch
from luthier.export.gguf_architectures import (
    architecture_of,
    head_size,
    key_value_heads,
    layer_norm_epsilon,
    rope_of,
)

_ROUNDED = 1e-6
"""How far a number may be from itself in fp32, by its size."""


def check_header(file: Path, config: PreTrainedConfig) -> None:
    """Compare the header with the config. Raises ExportMismatch, naming the key, for one that is missing or says something else."""
    name = architecture_of(config).name
    fields = gguf.GGUFReader(file).fields
    for key, expected in {**_shape(config), **_function(name, config)}.items():
        field = fields.get(f"{name}.{key}")
        found = None if field is None else field.contents()
        if not _is_same(found, expected):
            raise ExportMismatch(
                f"The written file has {name}.{key} {found!r}, and the run's model {expected!r}.", "Use --to merged."
            )


def _is_same(found: Any, expected: Any) -> bool:
    if isinstance(expected, float) and isinstance(found, float):
        return math.isclose(found, expected, rel_tol=_ROUNDED)
    return bool(found == expected)


def _shape(config: PreTrainedConfig) -> Mapping[str, Any]:
    """How large the model is, by the header's keys."""
    values = config.to_dict()
    inner = next((values[key] for key in ("intermediate_size", "ffn_hidden_size", "n_inner") if values.get(key)), None)
    return {
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": 4 * config.hidden_size if inner is None else inner,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": key_value_heads(config),
        "vocab_size": config.vocab_size,
    }


def _function(name: str, config: PreTrainedConfig) -> Mapping[str, Any]:
    """What else the model computes with, by the header's keys; None: the file says nothing of it."""
    values = config.to_dict()
    longest, window = int(config.max_position_embeddings), values.get("sliding_window")
    told: dict[str, Any] = {"context_length": longest}
    if "rms_norm_eps" in values:
        told["attention.layer_norm_rms_epsilon"] = float(values["rms_norm_eps"])
    else:
        told["attention.layer_norm_epsilon"] = layer_norm_epsilon(config)
    if name == "gpt2":
        return told
    if name in ("llama", "phi3") and window and config.model_type != "llama":
        told["context_length"] = min(longest, int(window))
    if name == "phi3":
        told["attention.sliding_window"] = int(window or 0)
        told["rope.scaling.original_context_length"] = int(values["original_max_position_embeddings"])
    if name in ("gemma2", "gemma3"):
        told["attention.sliding_window"] = None if window is None else int(window)
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        told[cap] = None if values.get(cap) is None else float(values[cap])
    rope, head = rope_of(config), head_size(config)
    is_stretched = rope.get("rope_type") == "linear"
    return told | {
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.freq_base": float(rope.get("rope_theta", 10000.0)),
        "rope.dimension_count": int(head * float(rope.get("partial_rotary_factor") or 1.0)),
        "rope.scaling.type": "linear" if is_stretched else None,
        "rope.scaling.factor": float(rope["factor"]) if is_stretched else None,
    }
