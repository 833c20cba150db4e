"""Adapters as they lie on disk, and Luthier's own form of them.

Every form says the same things: the settings that shape the adapter, its tensors by name, and which base it fits. Our own
is for methods that no other library has a form for:

    luthier_adapter.json        {"format": 1, "kind": …, "base": …, "settings": {…}}
    luthier_adapter.safetensors the tensors, named by layer and ending
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from luthier.errors import NotFound, RecipeError
from luthier.models.anatomy import Anatomy
from luthier.store.files import write_bytes, write_json

_FORMAT = 1


@dataclass(frozen=True)
class AdapterFile:
    """An adapter as it lies on disk: settings by Luthier's names, tensors by layer name and ending.

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
                f"The adapter does not fit the model, which has no layer to adapt called {_some(strange)}.",
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

    def check_shape(self, name: str, wanted: tuple[int, ...]) -> None:
        """Raise RecipeError if a tensor has another shape."""
        found = tuple(self.tensors[name].shape)
        if found != wanted:
            raise RecipeError(
                f"{name} has shape {found} in the adapter, but {wanted} fits this model.",
                "Choose the base model that the adapter was trained on.",
                file=self.path,
            )


def task_type(anatomy: Anatomy) -> str:
    """What peft calls the task of a language model."""
    return "CAUSAL_LM" if anatomy.encoder is None else "SEQ_2_SEQ_LM"


class Form(ABC):
    """A way to lay an adapter down in a folder."""

    @abstractmethod
    def read(self, source: str) -> AdapterFile:
        """The adapter of a run folder, or of the folder itself. Raises NotFound, RecipeError."""

    @abstractmethod
    def write(self, folder: Path, file: AdapterFile, anatomy: Anatomy, is_transposed: bool) -> None:
        """Write it into a folder that exists; is_transposed: whether the adapted weights are stored as (in, out)."""


@dataclass(frozen=True)
class OwnForm(Form):
    """Luthier's own form of the adapters of one kind of method."""

    kind: str

    CONFIG = "luthier_adapter.json"
    WEIGHTS = "luthier_adapter.safetensors"

    def read(self, source: str) -> AdapterFile:
        """The adapter of a run folder, or of the folder itself."""
        folder = adapter_folder(source, self.CONFIG)
        config = read_config(folder / self.CONFIG)
        if config.get("format") != _FORMAT or config.get("kind") != self.kind:
            raise RecipeError(
                f"This is an adapter of kind {config.get('kind')!r} in format {config.get('format')!r}; "
                f"{self.kind!r} in format {_FORMAT} was expected.",
                "Set method.kind to the adapter's own kind.",
                file=str(folder / self.CONFIG),
                field="kind",
            )
        tensors = read_tensors(folder, self.WEIGHTS)
        return AdapterFile(str(folder), dict(config["settings"]), tensors, str(config.get("base") or ""))

    def write(self, folder: Path, file: AdapterFile, anatomy: Anatomy, is_transposed: bool) -> None:
        """Write it into a folder that exists; is_transposed: whether the adapted weights are stored as (in, out)."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in file.tensors.items()}
        write_bytes(folder / self.WEIGHTS, save(tensors, metadata={"format": "pt"}))
        config = {"format": _FORMAT, "kind": self.kind, "base": file.base, "settings": file.settings}
        write_json(folder / self.CONFIG, config)


def adapter_folder(source: str, config: str) -> Path:
    """The folder that holds the adapter: the one given, or its `adapter/` if that is a run."""
    folder = Path(source).expanduser()
    for candidate in (folder, folder / "adapter"):
        if (candidate / config).is_file():
            return candidate
    if (folder / "model" / "config.json").is_file():
        raise RecipeError(
            f"{source} is a run of full tuning, which has no adapter.",
            f"Set model to {folder / 'model'} to go on from it.",
            field="method.from",
        )
    raise NotFound(
        f"There is no adapter in {source}: neither {config} nor adapter/{config}.",
        "Name a finished run, or a folder that holds an adapter of this kind.",
        field="method.from",
    )


def read_config(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object. Raises RecipeError."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RecipeError(f"The file is not JSON: {error}.", "Write the adapter again.", file=str(path)) from error
    if not isinstance(config, dict):
        raise RecipeError("The file holds no JSON object.", "Write the adapter again.", file=str(path))
    return config


def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises RecipeError if it is missing or not whole."""
    weights = folder / name
    if not weights.is_file():
        raise RecipeError(
            f"{folder} holds no {name}.",
            "Adapters in pickle files (.bin) are not read, because a pickle can run code; save them as safetensors.",
            file=str(folder),
        )
    try:
        return load_file(weights)
    except SafetensorError as error:
        raise RecipeError(f"The file is not whole: {error}.", "Copy it again.", file=str(weights)) from error


def _some(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
