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
from luthier.store.places import expanded

MODULES_TO_SAVE = "modules_to_save"
TOKEN_INDICES = "trainable_token_indices"
_FORMAT = 1
_CLASSIFIERS = frozenset({"classifier", "score"})


@dataclass(frozen=True)
class AdapterFile:
    """An adapter as it lies on disk: settings by Luthier's names, tensors by layer name and ending.

    `extra` keeps the config fields that Luthier has no use for, so that reading and writing loses none of them.
    whole: modules that the file says were trained whole beside the adapter. head: the tensors of those, by the base's names.
    tokens, rows: new tokens whose rows were trained beside the adapter, and these by the layer that has them.
    task: what the model is for, as peft calls it. config: the file that says all this.
    """

    path: str
    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    base: str
    extra: dict[str, Any] = field(default_factory=dict)
    whole: tuple[str, ...] = ()
    head: dict[str, Tensor] = field(default_factory=dict)
    tokens: tuple[int, ...] = ()
    rows: dict[str, Tensor] = field(default_factory=dict)
    task: str = "CAUSAL_LM"
    config: str | None = None

    def head_layers(self, anatomy: Anatomy) -> set[str]:
        """The layers of a model's head for classes that the file holds. Raises RecipeError for what else it has whole."""
        layers = {name.rpartition(".")[0] for name in self.head}
        own = set(anatomy.head_linears) if anatomy.purpose == "classes" else set()
        usual = _CLASSIFIERS if own else frozenset[str]()  # peft names both, whichever the model has
        strange = {name for name in self.whole if name not in usual and not any(holds(name, layer) for layer in own)}
        if strange or layers - own:
            raise RecipeError(
                f"Beside the adapter, {_some(strange or layers - own)} was trained whole ({MODULES_TO_SAVE}), which is no head "
                "of this model for classes.",
                "Choose the base and the objective that it was trained for; or merge it into its base with the tool that "
                "made it, and begin from the merged model.",
                file=self.config or self.path,
                field=MODULES_TO_SAVE,
            )
        return layers

    def check_head_tensors(self, wanted: dict[str, tuple[int, ...]]) -> None:
        """Raise RecipeError unless the file holds exactly the tensors of a head, in these shapes."""
        found = {name: tuple(tensor.shape) for name, tensor in self.head.items()}
        if found != wanted:
            raise RecipeError(
                f"The adapter's head has {_shapes(found)}, but {_shapes(wanted)} fits this model and its classes.",
                "Set objective.classes to those that the adapter was trained for, and choose its base model.",
                file=self.path,
            )

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
    """What peft calls the task of a model."""
    if anatomy.purpose == "classes":
        return "TOKEN_CLS" if anatomy.reads_tokens else "SEQ_CLS"
    if anatomy.family.kind == "encoder":
        return "FEATURE_EXTRACTION"
    return "CAUSAL_LM" if anatomy.encoder is None else "SEQ_2_SEQ_LM"


class Form(ABC):
    """A way to lay an adapter down in a folder."""

    @abstractmethod
    def read(self, source: str) -> AdapterFile:
        """The adapter of a run folder, or of the folder itself. Raises NotFound, RecipeError."""

    @abstractmethod
    def write(self, folder: Path, file: AdapterFile, anatomy: Anatomy, is_transposed: bool) -> None:
        """Write it into a folder that exists; is_transposed: whether the adapted weights are stored as (in, out)."""

    def unshared(self, file: AdapterFile, anatomy: Anatomy) -> str | None:
        """Why the library whose form this is cannot have the adapter, so that it is written in Luthier's own; None if it can."""
        return None

    def holds_rows(self, file: AdapterFile, anatomy: Anatomy) -> bool:
        """Whether the form has a place for the rows of new tokens; if not, they lie in a file of their own (`rows_files`)."""
        return False


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
        head = {name: tensors.pop(name) for name in config.get("head", []) if name in tensors}
        return AdapterFile(
            str(folder),
            dict(config["settings"]),
            tensors,
            str(config.get("base") or ""),
            head=head,
            config=str(folder / self.CONFIG),
        )

    def write(self, folder: Path, file: AdapterFile, anatomy: Anatomy, is_transposed: bool) -> None:
        """Write it into a folder that exists; is_transposed: whether the adapted weights are stored as (in, out)."""
        everything = {**file.tensors, **file.head}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in everything.items()}
        write_bytes(folder / self.WEIGHTS, save(tensors, metadata={"format": "pt"}))
        config: dict[str, Any] = {"format": _FORMAT, "kind": self.kind, "base": file.base, "settings": file.settings}
        if file.head:
            config["head"] = sorted(file.head)
        write_json(folder / self.CONFIG, config)


def adapter_folder(source: str, *configs: str) -> Path:
    """The folder that holds the adapter, known by one of these configs: the one given, or its `adapter/` if that is a run."""
    folder = expanded(source)
    for candidate in (folder, folder / "adapter"):
        if any((candidate / config).is_file() for config in configs):
            return candidate
    if (folder / "model" / "config.json").is_file():
        raise RecipeError(
            f"{source} is a run of full tuning, which has no adapter.",
            f"Set model to {folder / 'model'} to go on from it.",
            field="method.from",
        )
    names = " nor ".join(f"{config} nor adapter/{config}" for config in configs)
    raise NotFound(
        f"There is no adapter in {source}: neither {names}.",
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


def holds(module: str, layer: str) -> bool:
    """Whether a module that a config names, perhaps by the end of its name, is a layer or has it inside."""
    return f".{module}." in f".{layer}."


def head_config(file: AdapterFile, anatomy: Anatomy) -> dict[str, Any]:
    """What peft's config says of the model's task, and of a head that was trained whole."""
    kept = file.extra.get("task_type", file.task)
    config: dict[str, Any] = {"task_type": kept if kept is None else file.task}
    if file.head:
        # a whole module by its own name, and layers inside the trunk one by one: peft wraps what it is given
        layers = dict.fromkeys(name.rpartition(".")[0] for name in file.head)
        inside = anatomy.trunk + "."
        config[MODULES_TO_SAVE] = list(
            dict.fromkeys(n if n.startswith(inside) else n.partition(".")[0] for n in layers)
        )
    return config


def whole_modules(config: dict[str, Any]) -> tuple[str, ...]:
    """The modules that peft's config says were trained whole."""
    return tuple(map(str, config.get(MODULES_TO_SAVE) or ()))


def without_whole(extra: dict[str, Any]) -> dict[str, Any]:
    """Config fields without those modules, which the model decides when the file is written."""
    return {key: value for key, value in extra.items() if key != MODULES_TO_SAVE or not value}


def _shapes(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in sorted(shapes.items())) or "no tensor"


def _some(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
