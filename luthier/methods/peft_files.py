"""Adapters in the file format of `peft`: `adapter_config.json` and `adapter_model.safetensors`.

Keys are `base_model.model.` + the module's own name + an ending of the adapter's type, such as `.lora_A.weight`; beside
adapted embeddings peft saves the frozen table. A head for classes that was trained beside the adapter lies there whole, as
`base_model.model.classifier.weight`. Experts of a mixture: see `stacked_experts`. What a file holds beyond that and what the method computes changes the function, so
such files are refused rather than half read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from luthier.errors import NotFound, RecipeError
from luthier.methods.adapter_files import (
    TOKEN_INDICES,
    AdapterFile,
    Form,
    OwnForm,
    adapter_folder,
    head_config,
    holds,
    read_config,
    read_tensors,
    whole_modules,
    without_whole,
)
from luthier.methods.stacked_experts import adapted_stacks, apart, parameter_names, stacked, unstackable, with_patterns
from luthier.models.anatomy import Anatomy, find_targets
from luthier.store.files import write_bytes, write_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_SHARED_PREFIX = "base_model."
_FROZEN_COPY = ".base_layer.weight"
_ROWS = ".token_adapter.trainable_tokens_delta"


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
    has_rows: whether peft trains rows of tokens beside this type.
    stacks: whether there are such adapters of experts, whose weights transformers keeps stacked; if not, those of a mixture
    are written in Luthier's own form.

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
    has_rows: bool = False
    stacks: bool = False

    def read(self, source: str) -> AdapterFile:
        """The adapter of a run or a peft folder. Raises NotFound, or RecipeError for what is not this method's."""
        try:
            return self._with_settings(self._own.read(source))
        except NotFound:
            folder = adapter_folder(source, CONFIG)
        config = self._checked_config(folder / CONFIG)
        raw = read_tensors(folder, WEIGHTS)
        whole = whole_modules(config)
        in_head = {key for key in raw if any(holds(module, key.rpartition(".")[0]) for module in whole)}
        head = {key.removeprefix(_PREFIX): raw[key] for key in in_head}
        rows = {
            key.removeprefix(_PREFIX).removesuffix(_ROWS): tensor for key, tensor in raw.items() if key.endswith(_ROWS)
        }
        tensors = {
            self._inner_name(key, folder / WEIGHTS): tensor
            for key, tensor in raw.items()
            if not key.endswith((_FROZEN_COPY, _ROWS)) and key not in in_head
        }
        if self.stacks:
            tensors, config = apart(tensors, config, str(folder / WEIGHTS))
        layers = tuple(dict.fromkeys(self._layer_of(name) for name in tensors if name not in self.shared))
        settings = {**self.settings_of(config, tensors), "targets": layers}
        known = {*self.fields.values(), "target_modules", *([TOKEN_INDICES] if rows else [])}
        extra = {key: value for key, value in config.items() if key not in known}
        base = str(config.get("base_model_name_or_path") or "")
        return AdapterFile(
            str(folder),
            settings,
            tensors,
            base,
            without_whole(extra),
            whole,
            head,
            tokens=_token_indices(config, folder / CONFIG),
            rows=rows,
            config=str(folder / CONFIG),
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
        """Write an adapter so that `PeftModel.from_pretrained` gives the same function, or in Luthier's form if none would."""
        if self.unshared(file, anatomy) is not None:
            config = {**self.constants, **self.config_of(file.settings), "targets": file.settings["targets"]}
            self._own.write(folder, replace(file, settings=config), anatomy, is_transposed)
            return
        stacks = adapted_stacks(file.settings["targets"], anatomy)
        settings = with_patterns(stacks, file.settings) if stacks else file.settings
        parameters = [
            *parameter_names(stacks, anatomy),
            *_dense_parameters(file.settings["targets"], anatomy, self.stacks),
        ]
        modules = _target_modules(tuple(file.settings["targets"]), anatomy, parameters)
        config = {
            "peft_type": self.peft_type,
            "inference_mode": True,
            **self.constants,
            **file.extra,
            **head_config(file, anatomy),
            "base_model_name_or_path": file.base,
            **self.config_of(settings),
            "target_modules": list(modules),
            **(_token_config(file) if self.has_rows else {}),
        }
        if self.transposes:
            config["fan_in_fan_out"] = is_transposed
        if parameters:
            config["lora_dropout"] = 0.0  # peft has no dropout there
        if parameters or config.get("target_parameters"):
            config["target_parameters"] = parameters or None
        named = {self._outer_name(name): tensor for name, tensor in stacked(stacks, file.tensors).items()}
        named |= {_PREFIX + name: tensor for name, tensor in file.head.items()}
        if self.has_rows:
            named |= {f"{_PREFIX}{layer}{_ROWS}": tensor for layer, tensor in file.rows.items()}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
        write_bytes(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
        write_json(folder / CONFIG, config)

    def unshared(self, file: AdapterFile, anatomy: Anatomy) -> str | None:
        """Why peft cannot have the adapter; None if it can."""
        stacks = adapted_stacks(file.settings["targets"], anatomy)
        if stacks and not self.stacks:
            return (
                f"peft has no {self.title} of the experts of {stacks[0].mixture}, whose weights it keeps in one tensor"
            )
        reason = unstackable(stacks, file.settings, file.tensors)
        return None if reason is None else f"{reason}, and peft has one for all of them"

    def holds_rows(self, file: AdapterFile, anatomy: Anatomy) -> bool:
        """Where peft has a place for them."""
        return self.has_rows and self.unshared(file, anatomy) is None

    def _with_settings(self, file: AdapterFile) -> AdapterFile:
        """A file of our own form, which says by peft's names what shapes the adapter."""
        config, tensors = file.settings, file.tensors
        return replace(file, settings={**self.settings_of(config, tensors), "targets": config["targets"]})

    @property
    def _own(self) -> OwnForm:
        return OwnForm(self.title)

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
            is_read = self.stacks and key == "target_parameters"
            if config.get(key) not in allowed and not is_read:
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


def _token_config(file: AdapterFile) -> dict[str, Any]:
    """What peft's config says of trained rows: the tokens, and the layers where an untied head has rows too."""
    if not file.tokens:
        return {}
    tokens = list(file.tokens)
    return {TOKEN_INDICES: tokens if len(file.rows) == 1 else dict.fromkeys(file.rows, tokens)}


def _token_indices(config: Mapping[str, Any], path: Path) -> tuple[int, ...]:
    """The tokens whose rows were trained. Raises RecipeError for layers with rows of different tokens."""
    found = config.get(TOKEN_INDICES) or []
    every = list(found.values()) if isinstance(found, dict) else [found]
    if any(tokens != every[0] for tokens in every):
        raise RecipeError(
            "The adapter has trained rows of other tokens in the embedding than in the head.",
            "Merge it into its base with the tool that made it, and begin from the merged model.",
            file=str(path),
            field=TOKEN_INDICES,
        )
    return tuple(every[0]) if every else ()


def _dense_parameters(targets: Iterable[str], anatomy: Anatomy, stacks: bool) -> list[str]:
    """Weights that peft must be given as parameters: of adapted feed-forwards without experts, where other layers have some.

    Named as modules, peft takes them for experts under the names that those had before transformers 5.
    """
    if not stacks or not anatomy.experts:
        return []
    dense = tuple(f"{layer.feedforward}." for layer in anatomy.layers if not layer.mixture)
    return [f"{name}.weight" for name in targets if name.startswith(dense)] if dense else []


def _target_modules(targets: tuple[str, ...], anatomy: Anatomy, parameters: list[str]) -> tuple[str, ...]:
    """Short names of the layers that are adapted as modules, where those say exactly these, whole names where not."""
    others = {*anatomy.experts, *(name.removesuffix(".weight") for name in parameters)}
    layers = tuple(name for name in targets if name not in others)
    if not layers:
        return ()
    endings = tuple(dict.fromkeys(name.rsplit(".", 1)[-1] for name in layers))
    known = {anatomy.embedding, *anatomy.linears, *anatomy.routers, *anatomy.head_linears}
    is_exact = set(layers) <= known and set(find_targets(anatomy, endings, None)) == set(layers)
    return endings if is_exact else layers
