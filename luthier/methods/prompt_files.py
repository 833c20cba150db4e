"""Soft prompts in the files of `peft`: one table of rows, `prompt_embeddings`, under no prefix.

A network that makes the rows in training is no part of peft's file, which holds the rows that it came to. Ours lies beside
it, in `luthier_encoder.safetensors`, so that training can go on; peft does not look at it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from luthier.errors import RecipeError
from luthier.methods.adapter_files import (
    AdapterFile,
    Form,
    adapter_folder,
    head_config,
    read_config,
    read_tensors,
    whole_modules,
    without_whole,
)
from luthier.methods.peft_files import CONFIG, WEIGHTS
from luthier.models.anatomy import Anatomy
from luthier.store.files import write_bytes, write_json

TABLE = "prompt_embeddings"
_HEAD = "base_model."  # a head that was trained whole beside the prompt
ENCODER = "luthier_encoder.safetensors"
_COUNT = "num_virtual_tokens"
_SIZES = ("token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules")


@dataclass(frozen=True)
class PromptForm(Form):
    """One of peft's types of soft prompts.

    title: what the method is called in messages. peft_type: what the config calls it. also_read: types whose table means
    the same. constants: what is written besides.

    A type may override `settings_of` and `config_of` for the settings that it has beside the number of virtual tokens.
    """

    title: str
    peft_type: str
    also_read: tuple[str, ...] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)

    def read(self, source: str) -> AdapterFile:
        """The soft prompt of a run or a peft folder. Raises NotFound, or RecipeError for what is not this method's."""
        folder = adapter_folder(source, CONFIG)
        config = read_config(folder / CONFIG)
        self._check(config, folder / CONFIG)
        tensors = read_tensors(folder, WEIGHTS)
        head = {key.removeprefix(_HEAD): tensors.pop(key) for key in list(tensors) if key.startswith(_HEAD)}
        is_own = config["peft_type"] == self.peft_type
        if is_own and (folder / ENCODER).is_file():
            tensors |= read_tensors(folder, ENCODER)
        settings = {_COUNT: config.get(_COUNT), **self.settings_of(config, tensors)}
        known = {_COUNT, *self.config_of(settings)}
        extra = {key: value for key, value in config.items() if (key not in known if is_own else key in _SIZES)}
        base = str(config.get("base_model_name_or_path") or "")
        return AdapterFile(
            str(folder),
            settings,
            tensors,
            base,
            without_whole(extra),
            whole_modules(config),
            head,
            config=str(folder / CONFIG),
        )

    def settings_of(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Our settings, but for the number of virtual tokens, from peft's config."""
        return {}

    def config_of(self, settings: dict[str, Any]) -> dict[str, Any]:
        """peft's config fields, but for the number of virtual tokens, from our settings."""
        return {}

    def write(self, folder: Path, file: AdapterFile, anatomy: Anatomy, is_transposed: bool) -> None:
        """Write a soft prompt so that `PeftModel.from_pretrained` gives the same function."""
        config = {
            "inference_mode": True,
            **self.constants,
            **file.extra,
            **head_config(file, anatomy),
            "peft_type": self.peft_type,
            "base_model_name_or_path": file.base,
            _COUNT: file.settings[_COUNT],
            **self.config_of(file.settings),
        }
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in file.tensors.items()}
        encoder = {name: tensor for name, tensor in tensors.items() if name != TABLE}
        head = {_HEAD + name: tensor.detach().cpu().contiguous() for name, tensor in file.head.items()}
        write_bytes(folder / WEIGHTS, save({TABLE: tensors[TABLE], **head}, metadata={"format": "pt"}))
        if encoder:
            write_bytes(folder / ENCODER, save(encoder, metadata={"format": "pt"}))
        write_json(folder / CONFIG, config)

    def _check(self, config: dict[str, Any], path: Path) -> None:
        types = (self.peft_type, *self.also_read)
        if config.get("peft_type") not in types:
            raise RecipeError(
                f"The adapter is of type {config.get('peft_type')!r}, not {' or '.join(types)}.",
                "Set method.kind to the adapter's own kind.",
                file=str(path),
                field="peft_type",
            )
        submodules = config.get("num_transformer_submodules")
        if submodules not in (None, 1):
            raise RecipeError(
                f"The adapter uses num_transformer_submodules = {submodules!r}, which {self.title} of a decoder does not have.",
                "Begin from an adapter that was trained for causal language modelling alone.",
                file=str(path),
                field="num_transformer_submodules",
            )
