"""Prefixes in the files of the `adapters` library: `adapter_config.json` and `adapter.safetensors`.

All keys are those of one module of no layer, `prefix_tuning.prefix_tunings.NAME.self_prefix`. A prefix that trains itself is
one vector, `control_trans`, in the order of our table: token by token, layer by layer, keys before values. One that a
network makes is kept as the network: `wte` and two linear layers. Every layer of the library's model names these tensors
too, so it refuses to save them as safetensors, though it loads them; a file with all those names is read as well.

The library gives a document's tokens the positions that they would have without the prefix, so only prefixes that take
no positions are in this form. It gives every query head a key and a value, of width D / heads, and shows the prefix to all
tokens, which leaves out models with fewer key heads or with windows. (Version 1.2.0 computes this right with eager
attention; with sdpa and no padding its causal mask begins at the prefix, and early tokens do not see all of it.)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from luthier.errors import RecipeError
from luthier.methods.adapter_files import AdapterFile
from luthier.methods.adapterhub_files import (
    CONFIG,
    NAME,
    is_hub_file,
    read_hub_config,
    read_hub_head,
    read_hub_tensors,
    write_hub_files,
)
from luthier.methods.prompt_files import TABLE
from luthier.models.anatomy import Anatomy, num_key_value_heads

ARCHITECTURES = ("llama", "mistral", "gpt2")

_FLAT = "control_trans"
_NETWORK: Mapping[str, str] = {
    "embedding": "wte.weight",
    "network.0.weight": "control_trans.0.weight",
    "network.0.bias": "control_trans.0.bias",
    "network.2.weight": "control_trans.2.weight",
    "network.2.bias": "control_trans.2.bias",
}
_FIXED: Mapping[str, object] = {"architecture": "prefix_tuning", "use_gating": False, "leave_out": []}
_ACTIVATION = "tanh"
_LENGTH, _WIDTH = 30, 512
"""What a config without them means by prefix_length and bottleneck_size."""


def has_hub_prefixes(config: PreTrainedConfig) -> bool:
    """Whether the library computes what Luthier does for prefixes of this model that take no positions."""
    values = config.to_dict()
    heads, width = int(config.num_attention_heads), int(config.hidden_size)
    head_width = values.get("head_dim") or width // heads
    return (
        values["model_type"] in ARCHITECTURES
        and num_key_value_heads(config) == heads
        and head_width * heads == width
        and values.get("sliding_window") is None
    )


def read_hub_prefix(folder: Path) -> AdapterFile:
    """The prefix in a folder of the library, under Luthier's names. Raises RecipeError."""
    config = read_hub_config(folder / CONFIG)
    inner = config["config"]
    _check(inner, folder / CONFIG)
    tensors = _named(read_hub_tensors(folder), config["name"], folder)
    count, is_flat = inner.get("prefix_length", _LENGTH), inner.get("flat", False)
    wanted = {_FLAT} if is_flat else set(_NETWORK.values())
    if set(tensors) != wanted:
        raise RecipeError(
            f"A prefix of this config has the tensors {', '.join(sorted(wanted))}; the file has {', '.join(sorted(tensors))}.",
            "Save the adapter again with the tool that made it.",
            file=str(folder),
        )
    if not is_flat:
        tensors = {ours: tensors[theirs] for ours, theirs in _NETWORK.items()}
    try:
        tensors = {TABLE: tensors[_FLAT].view(count, -1)} if is_flat else {**tensors, TABLE: _made(tensors)}
    except (RuntimeError, TypeError) as error:
        raise RecipeError(
            "The prefix's tensors fit neither each other nor its prefix_length.", "Copy it again.", file=str(folder)
        ) from error
    settings = {
        "num_virtual_tokens": count,
        "projection": None if is_flat else inner.get("bottleneck_size", _WIDTH),
        "init": "random",
        "takes_positions": False,
    }
    base = str(config.get("model_name") or "")
    return AdapterFile(str(folder), settings, tensors, base, config, head=read_hub_head(folder))


def write_hub_prefix(folder: Path, file: AdapterFile, anatomy: Anatomy) -> None:
    """Write a prefix so that the library's `load_adapter` gives the same function."""
    found: dict[str, Any] = file.extra if is_hub_file(file) else {"name": NAME, "config": {}}
    projection = file.settings["projection"]
    config = {
        "encoder_prefix": True,
        "cross_prefix": True,
        "non_linearity": _ACTIVATION,
        **found["config"],
        **_FIXED,
        "flat": projection is None,
        "prefix_length": file.settings["num_virtual_tokens"],
        **({} if projection is None else {"bottleneck_size": projection}),
    }
    if projection is None:
        tensors = {_FLAT: file.tensors[TABLE].reshape(-1)}
    else:
        tensors = {theirs: file.tensors[ours] for ours, theirs in _NETWORK.items()}
    prefix = f"{anatomy.trunk}.prefix_tuning.{_module(found['name'])}"
    hidden_size = file.tensors[TABLE].shape[1] // (2 * len(anatomy.layers))
    outer: dict[str, Any] = {
        "hidden_size": hidden_size,
        "model_type": anatomy.model_type,
        "model_name": file.base,
    }
    named = {prefix + name: tensor for name, tensor in tensors.items()}
    write_hub_files(folder, {**found, **outer, "config": config}, named, file.head)


def _module(name: str) -> str:
    return f"prefix_tunings.{name}.self_prefix."


def _named(tensors: Mapping[str, Tensor], name: str, folder: Path) -> dict[str, Tensor]:
    """The tensors by their names within the prefix's module."""
    named: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        _, module, ending = key.rpartition(_module(name))
        if not module:
            raise RecipeError(
                f"Beside the prefix of the attention to a text itself the adapter holds {key!r}.",
                "Begin from a prefix that was trained on a decoder.",
                file=str(folder),
            )
        if ending in named and not torch.equal(named[ending], tensor):
            raise RecipeError(
                f"{key} is not what the other layers have for the prefix's {ending}, of which there is one.",
                "Save the adapter again with the tool that made it.",
                file=str(folder),
            )
        named[ending] = tensor
    return named


def _made(tensors: Mapping[str, Tensor]) -> Tensor:
    """The rows that the network makes: W₂ tanh(W₁ e + c₁) + c₂."""
    inner = torch.tanh(tensors["embedding"] @ tensors["network.0.weight"].t() + tensors["network.0.bias"])
    return inner @ tensors["network.2.weight"].t() + tensors["network.2.bias"]


def _check(config: dict[str, Any], path: Path) -> None:
    """Raise RecipeError for a config that is not a plain prefix's."""
    wanted = dict(_FIXED)
    if not config.get("flat", False):
        wanted["non_linearity"] = _ACTIVATION
    missing = {**wanted, "architecture": None}
    for key, value in wanted.items():
        found = config.get(key, missing[key])
        if found != value:
            raise RecipeError(
                f"The adapter has {key} = {found!r}; prefix-tuning has {value!r}.",
                "Set method.kind to the adapter's own kind, if it is houlsby, pfeiffer, parallel or compacter; other "
                "adapters of this library are not read.",
                file=str(path),
                field=key,
            )
