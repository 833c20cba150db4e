"""LoRA adapters in the file format of `peft`: `adapter_config.json` and `adapter_model.safetensors`.

Keys are `base_model.model.` + the module's own name + `.lora_A.weight` (R, I) and `.lora_B.weight` (O, R); embeddings
have `.lora_embedding_A` (R, V) and `.lora_embedding_B` (D, R), and peft saves the frozen table beside them.
What a file holds beyond plain LoRA changes the function, so such files are refused rather than half read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from luthier.errors import NotFound, RecipeError
from luthier.models.anatomy import Anatomy, find_targets
from luthier.store.files import write_bytes, write_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_FROZEN_COPY = ".base_layer.weight"
_SUFFIXES = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")

# config fields that change what the adapter computes, and the values under which they do nothing
_IDLE: dict[str, tuple[object, ...]] = {
    "bias": (None, "none"),
    "use_dora": (None, False),
    "lora_bias": (None, False),
    "use_qalora": (None, False),
    "use_bdlora": (None, False),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "velora_config": (None,),
    "init_lora_weights": (None, True, False, "gaussian", "orthogonal", "eva"),
}


@dataclass(frozen=True)
class LoRAFile:
    """An adapter as it lies on disk: settings by Luthier's names, tensors by layer name and suffix.

    `extra` keeps the config fields that Luthier has no use for, so that reading and writing loses none of them.
    """

    path: str
    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    base: str
    extra: dict[str, Any] = field(default_factory=dict)

    def check_layers(self, known: set[str]) -> None:
        """Raise RecipeError if the file adapts a layer that is not one of these."""
        strange = set(self.settings["targets"]) - known
        if strange:
            raise RecipeError(
                f"The adapter does not fit the model, which has no linear layer called {_some(strange)}.",
                "Choose the base model that it was trained on.",
                file=self.path,
            )

    def check_names(self, wanted: set[str]) -> None:
        """Raise RecipeError unless the file holds exactly the tensors of these names."""
        missing, unexpected = wanted - set(self.tensors), set(self.tensors) - wanted
        if missing or unexpected:
            parts = [f"lacks {_some(missing)}"] * bool(missing) + [f"holds {_some(unexpected)}"] * bool(unexpected)
            raise RecipeError(
                f"The adapter does not fit the model: it {' and '.join(parts)}.",
                "Choose the base model that it was trained on, or write it again with the tool that made it.",
                file=self.path,
            )


def _some(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def adapter_folder(source: str) -> Path:
    """The folder that holds the adapter: the one given, or its `adapter/` if that is a run."""
    folder = Path(source).expanduser()
    for candidate in (folder, folder / "adapter"):
        if (candidate / CONFIG).is_file():
            return candidate
    if (folder / "model" / "config.json").is_file():
        raise RecipeError(
            f"{source} is a run of full tuning, which has no adapter.",
            f"Set model to {folder / 'model'} to go on from it.",
            field="method.from",
        )
    raise NotFound(
        f"There is no adapter in {source}: neither {CONFIG} nor adapter/{CONFIG}.",
        "Name a finished run, or a folder that peft's save_pretrained wrote.",
        field="method.from",
    )


def read_lora(source: str) -> LoRAFile:
    """The adapter of a run or a peft folder. Raises NotFound, or RecipeError for what is not plain LoRA."""
    folder = adapter_folder(source)
    config = _read_config(folder / CONFIG)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise RecipeError(
            f"{folder} holds no {WEIGHTS}.",
            "Adapters in pickle files (.bin) are not read, because a pickle can run code; save them as safetensors.",
            file=str(folder),
        )
    try:
        raw = load_file(weights)
    except SafetensorError as error:
        raise RecipeError(f"The file is not whole: {error}.", "Copy it again.", file=str(weights)) from error
    tensors = {_inner_name(key, weights): tensor for key, tensor in raw.items() if not key.endswith(_FROZEN_COPY)}
    layers = tuple(dict.fromkeys(_layer_of_key(key) for key in tensors))
    known = {"r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules"}
    settings = {
        "rank": int(config["r"]),
        "alpha": float(config["lora_alpha"]),
        "dropout": config.get("lora_dropout") or 0.0,
        "rslora": config.get("use_rslora") or False,
        "rank_pattern": config.get("rank_pattern") or {},
        "alpha_pattern": config.get("alpha_pattern") or {},
        "targets": layers,
    }
    extra = {key: value for key, value in config.items() if key not in known}
    return LoRAFile(str(folder), settings, tensors, str(config.get("base_model_name_or_path") or ""), extra)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RecipeError(f"The file is not JSON: {error}.", "Write the adapter again.", file=str(path)) from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise RecipeError(
            f"The adapter is of type {kind!r}, not LORA.", "Use a LoRA adapter.", file=str(path), field="peft_type"
        )
    for key, idle in _IDLE.items():
        if config.get(key) not in idle:
            raise RecipeError(
                f"The adapter uses {key} = {config[key]!r}, which plain LoRA does not have.",
                "Merge it into its base with the tool that made it, and begin from the merged model.",
                file=str(path),
                field=key,
            )
    for key in ("r", "lora_alpha"):
        if not isinstance(config.get(key), int | float):
            raise RecipeError(
                f"{key} is {config.get(key)!r}; a number was expected.", "Mend the file.", file=str(path), field=key
            )
    return config


def _inner_name(key: str, path: Path) -> str:
    if not key.startswith(_PREFIX):
        raise RecipeError(
            f"The tensor {key!r} does not begin with {_PREFIX!r}.", "Save it with peft again.", file=str(path)
        )
    if not key.endswith(_SUFFIXES):
        raise RecipeError(
            f"Beside low-rank updates the file holds {key!r}, which plain LoRA does not have.",
            "If it was trained (tokens were added, perhaps), merge the adapter into its base and begin from that; "
            "if not, save it with save_embedding_layers=False.",
            file=str(path),
        )
    return key.removeprefix(_PREFIX)


def _layer_of_key(key: str) -> str:
    """`a.b.q_proj.lora_A.weight` → `a.b.q_proj`."""
    return key.split(".lora_", 1)[0]


def write_lora(folder: Path, file: LoRAFile, is_transposed: bool, anatomy: Anatomy) -> None:
    """Write an adapter so that `PeftModel.from_pretrained` gives the same function."""
    settings = file.settings
    layers = tuple(settings["targets"])
    endings = tuple(dict.fromkeys(name.rsplit(".", 1)[-1] for name in layers))
    is_exact = set(find_targets(anatomy, endings, None)) == set(layers)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
        **file.extra,
        "base_model_name_or_path": file.base,
        "r": settings["rank"],
        "lora_alpha": 2 * settings["rank"] if settings["alpha"] is None else settings["alpha"],
        "lora_dropout": settings["dropout"],
        "use_rslora": settings["rslora"],
        "rank_pattern": settings["rank_pattern"],
        "alpha_pattern": settings["alpha_pattern"],
        "target_modules": list(endings if is_exact else layers),
        "fan_in_fan_out": is_transposed,
    }
    tensors = {_PREFIX + key: tensor.cpu().contiguous() for key, tensor in file.tensors.items()}
    write_bytes(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    write_json(folder / CONFIG, config)
