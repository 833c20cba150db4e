"""Adapters in the file format of `peft`: `adapter_config.json` and `adapter_model.safetensors`.

Keys are `base_model.model.` + the module's own name + an ending of the adapter's type, such as `.lora_A.weight`; beside
adapted embeddings peft saves the frozen table. A head for classes that was trained beside the adapter lies there whole, as
`base_model.model.classifier.weight`. What a file holds beyond that and what the method computes changes the function, so
such files are refused rather than half read.
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
    holds,
    read_config,
    read_tensors,
    whole_modules,
    without_whole,
)
from luthier.models.anatomy import Anatomy, find_targets
from luthier.store.files import write_bytes, write_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_SHARED_PREFIX = "base_model."
_FROZEN_COPY = ".base_layer.weight"


@dataclass(frozen=True)
class PeftForm(Form):
    """One of peft's adapter types.

    title: what the method is called in messages. peft_type: what the config calls it.
    fields: our settings' names and peft's, for those that differ in name only; a field that is missing from a file has
    the value of `missing`.
    required: peft's names of numbers that must be there.
    endings: what a tensor may be called after its layer. shared: tensors that belong to no layer.
    allowed: config fields that change what the adapter computes, and the values under which this method is meant.
    constants: what is written besides. transposes: whether the config says if weights are stored as (in, out).

    A type may override `settings_of` and `config_of` where settings differ in more than names.
    """

    title: str
    peft_type: str
    fields: Mapping[str, str]
    endings: tuple[str, ...]
    required: tuple[str, ...] = ()
    missing: Mapping[str, Any] = field(default_factory=dict)
    shared: tuple[str, ...] = ()
    allowed: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    transposes: bool = True

    def read(self, source: str) -> AdapterFile:
        """The adapter of a run or a peft folder. Raises NotFound, or RecipeError for what is not this method's."""
        folder = adapter_folder(source, CONFIG)
        config = self._checked_config(folder / CONFIG)
        raw = read_tensors(folder, WEIGHTS)
        whole = whole_modules(config)
        in_head = {key for key in raw if any(holds(module, key.rpartition(".")[0]) for module in whole)}
        head = {key.removeprefix(_PREFIX): raw[key] for key in in_head}
        tensors = {
            self._inner_name(key, folder / WEIGHTS): tensor
            for key, tensor in raw.items()
            if not key.endswith(_FROZEN_COPY) and key not in in_head
        }
        layers = tuple(dict.fromkeys(self._layer_of(name) for name in tensors if name not in self.shared))
        settings = {**self.settings_of(config, tensors), "targets": layers}
        known = {*self.fields.values(), "target_modules"}
        extra = {key: value for key, value in config.items() if key not in known}
        base = str(config.get("base_model_name_or_path") or "")
        return AdapterFile(
            str(folder), settings, tensors, base, without_whole(extra), whole, head, config=str(folder / CONFIG)
        )

    def settings_of(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Our settings, but for the targets, from peft's config."""
        settings = {}
        for ours, theirs in self.fields.items():
            value = config.get(theirs)
            settings[ours] = self.missing.get(ours) if value is None else value
        return settings

    def config_of(self, settings: dict[str, Any]) -> dict[str, Any]:
        """peft's config fields from our settings."""
        return {theirs: settings[ours] for ours, theirs in self.fields.items()}

    def write(self, folder: Path, file: AdapterFile, anatomy: Anatomy, is_transposed: bool) -> None:
        """Write an adapter so that `PeftModel.from_pretrained` gives the same function."""
        layers = tuple(file.settings["targets"])
        config = {
            "peft_type": self.peft_type,
            "inference_mode": True,
            **self.constants,
            **file.extra,
            **head_config(file, anatomy),
            "base_model_name_or_path": file.base,
            **self.config_of(file.settings),
            "target_modules": list(_target_modules(layers, anatomy)),
        }
        if self.transposes:
            config["fan_in_fan_out"] = is_transposed
        named = {self._outer_name(name): tensor for name, tensor in file.tensors.items()}
        named |= {_PREFIX + name: tensor for name, tensor in file.head.items()}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
        write_bytes(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
        write_json(folder / CONFIG, config)

    def _checked_config(self, path: Path) -> dict[str, Any]:
        config = read_config(path)
        if config.get("peft_type") != self.peft_type:
            raise RecipeError(
                f"The adapter is of type {config.get('peft_type')!r}, not {self.peft_type}.",
                "Set method.kind to the adapter's own kind.",
                file=str(path),
                field="peft_type",
            )
        for key, allowed in self.allowed.items():
            if config.get(key) not in allowed:
                raise RecipeError(
                    f"In the adapter {key} is {config.get(key)!r}, so it is not {self.title}.",
                    "Set method.kind to its own kind, or merge it into its base with the tool that made it and begin from "
                    "the merged model.",
                    file=str(path),
                    field=key,
                )
        for key in self.required:
            if not isinstance(config.get(key), int | float):
                raise RecipeError(
                    f"{key} is {config.get(key)!r}; a number was expected.", "Mend the file.", file=str(path), field=key
                )
        return config

    def _inner_name(self, key: str, path: Path) -> str:
        shared = key.removeprefix(_SHARED_PREFIX)
        if shared in self.shared:
            return shared
        if not key.startswith(_PREFIX):
            raise RecipeError(
                f"The tensor {key!r} does not begin with {_PREFIX!r}.", "Save it with peft again.", file=str(path)
            )
        name = key.removeprefix(_PREFIX)
        if self._ending_of(name) is None:
            raise RecipeError(
                f"Beside its own tensors the file holds {key!r}, which {self.title} does not have.",
                "If it was trained (tokens were added, perhaps), merge the adapter into its base and begin from that; "
                "if not, save it with save_embedding_layers=False.",
                file=str(path),
            )
        return name

    def _outer_name(self, name: str) -> str:
        return (_SHARED_PREFIX if name in self.shared else _PREFIX) + name

    def _ending_of(self, name: str) -> str | None:
        return next((ending for ending in self.endings if name.endswith("." + ending)), None)

    def _layer_of(self, name: str) -> str:
        """`a.b.q_proj.lora_A.weight` → `a.b.q_proj`."""
        ending = self._ending_of(name)
        assert ending is not None
        return name.removesuffix("." + ending)


def _target_modules(layers: tuple[str, ...], anatomy: Anatomy) -> tuple[str, ...]:
    """Short names where those say exactly these layers, whole names where not."""
    endings = tuple(dict.fromkeys(name.rsplit(".", 1)[-1] for name in layers))
    known = {anatomy.embedding, *anatomy.linears, *anatomy.routers, *anatomy.head_linears}
    is_exact = set(layers) <= known and set(find_targets(anatomy, endings, None)) == set(layers)
    return endings if is_exact else layers
