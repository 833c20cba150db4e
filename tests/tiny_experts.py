"""Mixtures of experts of two layers with random weights, as model folders: their experts whole, or in MXFP4 as released ones come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny_model import write_tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

WIDTH, WITHIN, EXPERTS = 32, 64, 4
_FAMILIES: dict[str, dict[str, Any]] = {
    "gpt_oss": {"num_local_experts": EXPERTS, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "mixtral": {"num_local_experts": EXPERTS},
    "qwen2_moe": {"num_experts": EXPERTS, "moe_intermediate_size": WITHIN, "shared_expert_intermediate_size": 32},
    "qwen3_moe": {"num_experts": EXPERTS, "moe_intermediate_size": WITHIN, "mlp_only_layers": [0]},
}
_WEIGHTS = "model.safetensors"


def write_tiny_experts(folder: Path, *, packed: bool = False, family: str = "gpt_oss") -> Path:
    """Write a model with a byte-level tokenizer and a ChatML template into `folder`; return it."""
    tokenizer = AutoTokenizer.from_pretrained(write_tiny_model(folder / "words"))
    config = AutoConfig.for_model(
        family, hidden_size=WIDTH, intermediate_size=WITHIN, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        num_experts_per_tok=2, sliding_window=8, vocab_size=len(tokenizer), max_position_embeddings=1024,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        **_FAMILIES[family],
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if packed:
        _pack_experts(folder)
    return folder


def _pack_experts(folder: Path) -> None:
    """Exchange the experts' weights for codes and exponents drawn at random, under the names that released files have."""
    tensors, draw = load_file(folder / _WEIGHTS), torch.Generator().manual_seed(1)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape  # whole ones are stored transposed
        blocks = (experts, outputs, inputs // 32)
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (*blocks, 16), generator=draw, dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(121, 125, blocks, generator=draw, dtype=torch.uint8)
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": kept}
    (folder / "config.json").write_text(json.dumps(config))
