"""Adapters in the files of the `adapters` library (AdapterHub): `adapter_config.json` and `adapter.safetensors`.

The config says under `config` what the adapter computes, and around that which model it is for and what its name is.
Keys are the library's own names of modules:

    model.layers.0.attention_adapters.adapters.NAME.adapter_down.0.weight    after the attention
    model.layers.0.output_adapters.adapters.NAME.adapter_up.bias             after the feed-forward
    transformer.decoder.block.0.layer.1.adapters.NAME.adapter_up.bias        after the cross-attention, if asked for
    model.shared_parameters.NAME.phm_rule                                    of no layer

The library knows only some architectures; for others the adapter is written in Luthier's own form, and which of the two a
folder holds shows in its files. What a config says beyond what the method computes changes the function, so such
adapters are refused rather than half read; what says only how an adapter began or is dropped out in training is kept.

These are the names and meanings of version 1.2.0. To load such a folder there: `load_adapter(folder, use_safetensors=True)`.
That version's attention of Llama and Mistral mixes tokens and heads, with an adapter or without (it transposes twice under
transformers 4.51), so what it trained on those was trained over another function than the model's. It saves a Compacter
of a `T5ForConditionalGeneration` without the rules that all layers share, but with them from an `AutoAdapterModel`, whose
names of a T5's tensors are written here; both kinds of names are read there and here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from safetensors.torch import save
from torch import Tensor

from luthier.errors import RecipeError
from luthier.methods.adapter_files import AdapterFile, Form, OwnForm, adapter_folder, read_config, read_tensors
from luthier.models.anatomy import Anatomy, LayerAnatomy
from luthier.store.files import write_bytes, write_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter.safetensors"
HEAD = "luthier_head.safetensors"
"""A head for classes that was trained whole beside the adapter; the library keeps its heads apart and does not look at it."""
CROSS = "cross_adapter"
"""What configs call it that an adapter stands after the cross-attention."""
_PICKLE = "pytorch_adapter.bin"
_VERSION = "adapters.1.2.0"
NAME = "luthier"
"""What an adapter is called that Luthier made."""


@dataclass(frozen=True)
class Sites:
    """Which of a layer's modules hold the adapters after its attention and its feed-forward; names from the layer.

    cross: after its cross-attention. encoder_feedforward: after the feed-forward of an encoder's layer, if it is another.
    """

    attention: str
    feedforward: str
    cross: str | None = None
    encoder_feedforward: str | None = None

    def of_layer(self, layer: LayerAnatomy) -> dict[str, str]:
        """These modules of a layer, by the linear layer that ends the sublayer."""
        feedforward = self.feedforward
        if layer.stack == "encoder" and self.encoder_feedforward is not None:
            feedforward = self.encoder_feedforward
        sites = {layer.attention_out: self.attention, layer.down: feedforward}
        if layer.cross_attention is not None and self.cross is not None:
            sites[layer.roles["cross_attention_out"]] = self.cross
        return sites


SITES: Mapping[str, Sites] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gpt2"), Sites("attention_adapters", "output_adapters")),
    **dict.fromkeys(("bert", "roberta"), Sites("attention.output", "output")),
    "t5": Sites("layer.0", "layer.2", cross="layer.1", encoder_feedforward="layer.1"),
    "bart": Sites("attention_adapters", "output_adapters", cross="cross_attention_adapters"),
}
"""By transformers' model type: the architectures in which the library computes what Luthier does."""

_ROOTS: Mapping[str, str] = {"t5": "transformer", "bart": "model"}
"""What the library calls the model below its head, where that is more than the trunk."""

DEFAULTS: Mapping[str, object] = {
    "original_ln_before": False,
    "original_ln_after": True,
    "residual_before_ln": True,
    "adapter_residual_before_ln": False,
    "ln_before": False,
    "ln_after": False,
    "is_parallel": False,
    "scaling": 1.0,
    "use_gating": False,
    "inv_adapter": None,
    "leave_out": [],
    "phm_layer": False,
    "architecture": None,
}
"""What the fields of a bottleneck's config mean where they are left out."""


@dataclass(frozen=True)
class AdapterHubForm(Form):
    """The bottlenecks of one kind of method.

    kind: the method's. fixed: config fields that shape the adapter, and the one value that this method has, where that is
    not the default. free: those that its settings decide. endings: what our tensors are called after their place, and
    theirs. shared: our and their names of tensors of no layer.
    """

    free: ClassVar[tuple[str, ...]]
    endings: ClassVar[Mapping[str, str]]
    shared: ClassVar[tuple[str, ...]] = ()

    kind: str
    fixed: Mapping[str, object] = field(default_factory=dict)

    @abstractmethod
    def settings_of(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Our settings, but for the layers, from the inner config. Raises ValueError for a value that has no place here."""

    @abstractmethod
    def config_of(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The inner config's fields, but for the layers and what is fixed, from our settings."""

    def read(self, source: str) -> AdapterFile:
        """The adapter of a run or a folder, in either form. The library's tensors keep its names: see `fitted`."""
        folder = adapter_folder(source, CONFIG, OwnForm.CONFIG)
        if not (folder / CONFIG).is_file():
            return OwnForm(self.kind).read(source)
        config = read_hub_config(folder / CONFIG)
        self._check(config["config"], folder / CONFIG)
        tensors = read_hub_tensors(folder)
        try:
            settings = self.settings_of({**DEFAULTS, **config["config"]}, tensors)
        except ValueError as error:
            raise RecipeError(str(error), "Mend the file, or train anew.", file=str(folder / CONFIG)) from error
        base = str(config.get("model_name") or "")
        return AdapterFile(str(folder), settings, tensors, base, config, head=read_hub_head(folder))

    def fitted(self, file: AdapterFile, anatomy: Anatomy) -> AdapterFile:
        """A file that was read, with the layers among its settings, and its tensors under Luthier's names.

        Raises RecipeError if it is for another architecture or holds a tensor that has no place in the model.
        """
        if not is_hub_file(file):
            return file
        check_model_type(file, anatomy)
        self._check_whole(file, anatomy)
        left_out = file.extra["config"].get("leave_out") or []
        layers = tuple(layer.index for layer in anatomy.layers if layer.index not in left_out)
        inner = {theirs: ours for ours, theirs in self._names(anatomy, file.extra["name"]).items()}
        tensors = {}
        for key, tensor in file.tensors.items():
            ours = inner.get(key) or inner.get(f"{hub_root(anatomy)}.{key}")  # saved from a model without its head
            if ours is None:
                raise RecipeError(
                    f"The adapter holds {key!r}, which has no place in it.",
                    "Choose the base model that it was trained on, or save it again with the tool that made it.",
                    file=file.path,
                )
            tensors[ours] = tensor
        return replace(file, settings={**file.settings, "layers": layers}, tensors=tensors)

    def write(self, folder: Path, file: AdapterFile, anatomy: Anatomy, is_transposed: bool) -> None:
        """Write an adapter so that the library's `load_adapter` gives the same function, where it knows the architecture."""
        if anatomy.model_type not in SITES:
            OwnForm(self.kind).write(folder, file, anatomy, is_transposed)
            return
        found: dict[str, Any] = file.extra if is_hub_file(file) else {"name": NAME, "config": {}}
        names = self._names(anatomy, found["name"])
        width = next(len(tensor) for name, tensor in file.tensors.items() if name.endswith(".adapter_up.bias"))
        kept = file.settings["layers"]
        left_out = [] if kept is None else [layer.index for layer in anatomy.layers if layer.index not in kept]
        config = {
            "reduction_factor": _reduction(width, file.settings["width"]),
            **{key: value for key, value in DEFAULTS.items() if value is not None},
            **found["config"],
            **self.fixed,
            **self.config_of(file.settings),
            "leave_out": left_out,
        }
        outer = {"hidden_size": width, "model_type": anatomy.model_type, "model_name": file.base}
        tensors = {names[name]: tensor for name, tensor in file.tensors.items()}
        write_hub_files(folder, {**found, **outer, "config": config}, tensors, file.head)

    def _names(self, anatomy: Anatomy, name: str) -> dict[str, str]:
        """The library's name of every tensor that an adapter of this kind may have, by ours."""
        root = hub_root(anatomy)
        names = {shared: f"{root}.shared_parameters.{name}.{shared}" for shared in self.shared}
        for layer in anatomy.layers:
            whole = layer.name if layer.name.startswith(f"{root}.") else f"{root}.{layer.name}"
            for place, site in SITES[anatomy.model_type].of_layer(layer).items():
                for ours, theirs in self.endings.items():
                    names[f"{place}.{ours}"] = f"{whole}.{site}.adapters.{name}.{theirs}"
        return names

    def _check_whole(self, file: AdapterFile, anatomy: Anatomy) -> None:
        """Raise RecipeError for adapters after a cross-attention that the model lacks, or if what all layers share is lost."""
        if file.extra["config"].get(CROSS) and anatomy.encoder is None:
            raise RecipeError(
                f"The adapter has {CROSS} = True, and models of type {anatomy.model_type!r} have no cross-attention.",
                "Choose the base model that it was trained on.",
                file=file.path,
                field=CROSS,
            )
        for shared in self.shared:
            if not any(key.endswith(f".{shared}") for key in file.tensors):
                raise RecipeError(
                    f"The adapter lacks {shared}, which all its layers share; the library loses it where it saves from a "
                    "T5ForConditionalGeneration.",
                    "Save it again from an AutoAdapterModel.",
                    file=file.path,
                )

    def _check(self, config: dict[str, Any], path: Path) -> None:
        """Raise RecipeError for a config that shapes the adapter in a way that this method does not have."""
        left_out = config.get("leave_out") or []
        if not isinstance(left_out, list) or not all(isinstance(index, int) for index in left_out):
            raise RecipeError(
                f"leave_out is {left_out!r}; a list of layers' indices was expected.",
                "Mend the file.",
                file=str(path),
                field="leave_out",
            )
        for key, wanted in {**DEFAULTS, **self.fixed}.items():
            value = config.get(key, DEFAULTS.get(key, wanted))
            if key not in (*self.free, "leave_out") and value != wanted:
                raise RecipeError(
                    f"The adapter has {key} = {value!r}; {self.kind} has {wanted!r}.",
                    "Set method.kind to the adapter's own kind, if it is houlsby, pfeiffer, parallel, compacter or "
                    "prefix-tuning; other adapters of this library are not read.",
                    file=str(path),
                    field=key,
                )


def hub_root(anatomy: Anatomy) -> str:
    """What the library calls the model below its head; what it keeps of no layer is there."""
    return _ROOTS.get(anatomy.model_type, anatomy.trunk)


def is_hub_file(file: AdapterFile) -> bool:
    """Whether an adapter was read from the library's files, which leave their whole config in `extra`."""
    return "config" in file.extra


def read_hub_config(path: Path) -> dict[str, Any]:
    """The whole config. Raises RecipeError if it is none of this library's."""
    config = read_config(path)
    if "peft_type" in config:
        raise RecipeError(
            f"The adapter is one of peft's, of type {config['peft_type']!r}.",
            "Set method.kind to the adapter's own kind.",
            file=str(path),
            field="peft_type",
        )
    if not isinstance(config.get("config"), dict) or not isinstance(config.get("name"), str):
        raise RecipeError(
            "The file says nothing of the adapter: it has no object `config`, or no text `name`.",
            "Save the adapter again with the tool that made it.",
            file=str(path),
            field="config",
        )
    inner = config["config"]
    if "version" not in config and inner.get("non_linearity") in _OLD_ACTIVATIONS:
        config["config"] = {**inner, "non_linearity": _OLD_ACTIVATIONS[inner["non_linearity"]]}
    return config


def read_hub_tensors(folder: Path) -> dict[str, Tensor]:
    """The adapter's tensors. Raises RecipeError if they are missing, broken or in a pickle."""
    if not (folder / WEIGHTS).is_file() and (folder / _PICKLE).is_file():
        raise RecipeError(
            f"The adapter's tensors are in {_PICKLE}, a pickle, which can run code and is not read.",
            f"Save it again with save_adapter(…, use_safetensors=True), which writes {WEIGHTS}. A prefix, which it cannot "
            "save so, can be saved from the pickle with safetensors.torch.save_file, each tensor a clone.",
            file=str(folder / _PICKLE),
        )
    return read_tensors(folder, WEIGHTS)


def read_hub_head(folder: Path) -> dict[str, Tensor]:
    """The head that Luthier wrote beside an adapter; none if it wrote none."""
    return read_tensors(folder, HEAD) if (folder / HEAD).is_file() else {}


def write_hub_files(
    folder: Path, config: dict[str, Any], tensors: Mapping[str, Tensor], head: Mapping[str, Tensor]
) -> None:
    """Config and tensors under the library's names, and a head for classes beside them if there is one."""
    for file, named in ((WEIGHTS, tensors), (HEAD, head)):
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
        if plain:
            write_bytes(folder / file, save(plain, metadata={"format": "pt"}))
    write_json(folder / CONFIG, {**config, "version": _VERSION})


def check_model_type(file: AdapterFile, anatomy: Anatomy) -> None:
    """Raise RecipeError unless the library made the adapter for models like this one."""
    model_type = file.extra.get("model_type")
    if model_type != anatomy.model_type or model_type not in SITES:
        raise RecipeError(
            f"The adapter is for models of type {model_type!r}; this one is of type {anatomy.model_type!r}. Adapters of "
            f"this library are read for {', '.join(SITES)}.",
            "Choose the base model that it was trained on.",
            file=file.path,
            field="model_type",
        )


_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "silu": "swish"}
_OURS = {theirs: ours for ours, theirs in _ACTIVATIONS.items()} | {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_OLD_ACTIVATIONS = {"gelu": "gelu_new", "gelu_orig": "gelu"}
"""What configs without a version, which are the oldest, mean by these names."""


def activation_of(config: Mapping[str, Any]) -> str:
    """Our name of a config's activation. Raises ValueError for one that Luthier does not have."""
    named = str(config.get("non_linearity")).lower()
    if named not in _OURS:
        raise ValueError(f"The adapter has non_linearity = {named!r}; known are {', '.join(_OURS)}.")
    return _OURS[named]


def hub_activation(activation: str) -> str:
    """The library's name of an activation."""
    return _ACTIVATIONS[activation]


def width_of(tensors: Mapping[str, Tensor], ending: str) -> int:
    """The width of the bottlenecks: the length of the tensors of this ending. Raises ValueError if they differ."""
    widths = {len(tensor) for key, tensor in tensors.items() if key.endswith(ending)}
    if len(widths) != 1:
        raise ValueError(f"The adapter's bottlenecks have the widths {sorted(widths)}; one width for all was expected.")
    return widths.pop()


def _reduction(model_width: int, width: int) -> int | float:
    """A factor that model_width // factor is width for, a whole one if there is one."""
    whole = model_width // width
    return whole if whole and model_width // whole == width else model_width / (width + 0.5)
