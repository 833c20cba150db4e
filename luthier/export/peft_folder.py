"""A run's adapter as a folder that `peft` loads, and what vLLM and SGLang ask of one besides."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import RecipeError
from luthier.methods.adapter_files import MODULES_TO_SAVE, TOKEN_INDICES
from luthier.methods.peft_files import CONFIG, WEIGHTS
from luthier.models.anatomy import Anatomy

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank takes: https://docs.vllm.ai/en/latest/features/lora.html."""

SERVED = (
    "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "gemma", "gemma2", "gemma3_text", "phi", "phi3",
    "olmo2", "granite", "opt", "starcoder2",
)  # fmt: skip
"""Types of models that vLLM takes adapters for: https://docs.vllm.ai/en/latest/models/supported_models.html, column LoRA."""


def copy_adapter(adapter: Path, folder: Path, kind: str) -> dict[str, Any]:
    """Copy peft's two files into a folder; peft's config. Raises RecipeError if the adapter lies in a form of Luthier's own."""
    names = {file.name for file in adapter.iterdir()}
    if CONFIG not in names or WEIGHTS not in names:
        raise RecipeError(
            f"peft has no adapter of kind {kind!r} as this run trained it, so the run keeps it in Luthier's own form.",
            "Use --to merged, if the method merges (see 'luthier methods'), or the run's adapter/ with Luthier.",
            field="method.kind",
        )
    beside = sorted(name for name in names if name.endswith(".safetensors") and name != WEIGHTS)
    if beside:
        raise RecipeError(
            f"peft has no place for a part of what the run trained, which lies in {beside[0]}.",
            "Use --to merged, if the method merges.",
            field="method.kind",
        )
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(adapter / name, folder / name)
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text("utf-8"))
    return config


@dataclass(frozen=True)
class Serving:
    """What servers must be told. max_rank: the least of their ranks that the adapter fits in. modules: the adapted layers."""

    max_rank: int
    modules: tuple[str, ...]


def check_served(config: dict[str, Any], anatomy: Anatomy) -> Serving:
    """What vLLM and SGLang need to be told to serve an adapter. Raises RecipeError, with the mend, for one they do not serve."""
    if config["peft_type"] != "LORA":
        raise _unserved(f"it is of type {config['peft_type']}, and they serve LoRA alone")
    if config.get("use_dora"):
        raise _unserved("it is a DoRA, whose magnitudes they do not apply")
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        raise _unserved("it changes biases, which they leave out")
    for field in (MODULES_TO_SAVE, TOKEN_INDICES, "target_parameters"):
        if config.get(field):
            raise _unserved(f"beside low-rank matrices of linear layers it has {field}: {config[field]}")
    for field in ("rank_pattern", "alpha_pattern", "layer_replication"):
        if config.get(field):
            raise _unserved(f"its layers have ranks or scales of their own ({field}), and they read one for all")
    if anatomy.model_type not in SERVED:
        raise _unserved(f"models of type {anatomy.model_type!r} take no adapters there")
    rank = int(config["r"])
    if rank > RANKS[-1]:
        raise RecipeError(
            f"The adapter's rank is {rank}, and vLLM serves at most {RANKS[-1]}.",
            f"Use 'luthier shrink' to bring it to {RANKS[-1]}, or --to merged.",
            field="method.rank",
        )
    modules = config["target_modules"]
    modules = (modules,) if isinstance(modules, str) else tuple(modules)
    ends = {name.rpartition(".")[2] for name in anatomy.linears}
    strange = sorted({name.rpartition(".")[2] for name in modules} - ends)
    if strange:
        raise _unserved(f"it adapts {', '.join(strange)}, and they serve linear layers of attention and feed-forward")
    return Serving(next(each for each in RANKS if each >= rank), modules)


def _unserved(reason: str) -> RecipeError:
    return RecipeError(
        f"vLLM and SGLang cannot serve the adapter: {reason}.",
        "Use --to merged, if the method merges, and serve the folder as a model of its own.",
        field="method.kind",
    )
