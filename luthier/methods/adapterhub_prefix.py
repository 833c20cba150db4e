"""Prefixes in the files of the `adapters` library: `adapter_config.json` and `adapter.safetensors`.

All keys are those of modules of no layer, `prefix_tuning.prefix_tunings.NAME.self_prefix` for a text's attention to itself;
in an encoder-decoder that is the decoder's, with `encoder_prefix` and `cross_prefix` beside it. A prefix that trains itself is
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
    hub_root,
    is_hub_file,
    read_hub_config,
    read_hub_head,
    read_hub_tensors,
    write_hub_files,
)
from luthier.methods.prompt_files import TABLE
from luthier.models.anatomy import Anatomy, num_key_value_heads
from luthier.models.virtual_tokens import attention_places

_DECODERS = ("llama", "mistral", "gpt2")
_ENCODER_DECODERS = ("t5", "bart")
ARCHITECTURES = (*_DECODERS, *_ENCODER_DECODERS)

WIDTH = "hidden_size"
"""What the outer config calls the model's width."""
_OWN = "self_prefix"
_PARTS: Mapping[str, str] = {"encoder_prefix": "encoder.", _OWN: "decoder.", "cross_prefix": "cross."}
"""The prefixes of an encoder-decoder, in our order, and what our names of their networks' tensors begin with."""
_FLAT = "control_trans"
_NETWORK: Mapping[str, str] = {
    "embedding": "wte.weight",
    "network.0.weight": "control_trans.0.weight",
    "network.0.bias": "control_trans.0.bias",
    "network.2.weight": "control_trans.2.weight",
    "network.2.bias": "control_trans.2.bias",
}
_FIXED: Mapping[str, object] = {"architecture": "prefix_tuning", "use_gating": False, "leave_out": []}
_EVERYWHERE: Mapping[str, object] = {"encoder_prefix": True, "cross_prefix": True}
_ACTIVATION = "tanh"
_LENGTH, _BOTTLENECK = 30, 512
"""What a config without them means by prefix_length and bottleneck_size."""


def has_hub_prefixes(config: PreTrainedConfig) -> bool:
    """Whether the library computes what Luthier does for prefixes of this model that take no positions."""
    values = config.to_dict()
    if values["model_type"] in _ENCODER_DECODERS:
        return True
    heads, width = int(config.num_attention_heads), int(config.hidden_size)
    head_width = values.get("head_dim") or width // heads
    return (
        values["model_type"] in _DECODERS
        and num_key_value_heads(config) == heads
        and head_width * heads == width
        and values.get("sliding_window") is None
    )


def read_hub_prefix(folder: Path) -> AdapterFile:
    """The prefix in a folder of the library, under Luthier's names. Raises RecipeError."""
    config = read_hub_config(folder / CONFIG)
    inner, parts = config["config"], _parts_of(config.get("model_type"))
    _check(inner, folder / CONFIG, in_all=len(parts) > 1)
    tensors = _by_part(read_hub_tensors(folder), config["name"], parts, folder)
    count, is_flat = inner.get("prefix_length", _LENGTH), inner.get("flat", False)
    wanted = {_FLAT} if is_flat else set(_NETWORK.values())
    for part, own in tensors.items():
        if set(own) != wanted:
            raise RecipeError(
                f"A prefix of this config has the tensors {', '.join(sorted(wanted))}; {part} in the file has "
                f"{', '.join(sorted(own)) or 'none'}.",
                "Save the adapter again with the tool that made it.",
                file=str(folder),
            )
    try:
        rows = [own[_FLAT].view(count, -1) if is_flat else _made(own) for own in tensors.values()]
        table = torch.cat(rows, dim=1)
    except (RuntimeError, TypeError) as error:
        raise RecipeError(
            "The prefix's tensors fit neither each other nor its prefix_length.", "Copy it again.", file=str(folder)
        ) from error
    named = {} if is_flat else _network_names(parts)
    settings = {
        "num_virtual_tokens": count,
        "projection": None if is_flat else inner.get("bottleneck_size", _BOTTLENECK),
        "init": "random",
        "takes_positions": False,
    }
    ours = {name: tensors[part][theirs] for name, (part, theirs) in named.items()}
    base = str(config.get("model_name") or "")
    return AdapterFile(str(folder), settings, {**ours, TABLE: table}, base, config, head=read_hub_head(folder))


def write_hub_prefix(folder: Path, file: AdapterFile, anatomy: Anatomy) -> None:
    """Write a prefix so that the library's `load_adapter` gives the same function."""
    found: dict[str, Any] = file.extra
    if not is_hub_file(file):
        found = {"name": NAME, "config": {}, WIDTH: file.extra[WIDTH]}
    projection = file.settings["projection"]
    config = {
        **_EVERYWHERE,
        "non_linearity": _ACTIVATION,
        **found["config"],
        **_FIXED,
        "flat": projection is None,
        "prefix_length": file.settings["num_virtual_tokens"],
        **({} if projection is None else {"bottleneck_size": projection}),
    }
    parts = _parts_of(anatomy.model_type)
    if projection is None:
        tensors = {f"{part}.{_FLAT}": rows for part, rows in _rows_of_parts(file.tensors[TABLE], anatomy).items()}
    else:
        named = _network_names(parts)
        tensors = {f"{part}.{theirs}": file.tensors[ours] for ours, (part, theirs) in named.items()}
    place = f"{hub_root(anatomy)}.prefix_tuning.{_group(found['name'])}"
    outer: dict[str, Any] = {"model_type": anatomy.model_type, "model_name": file.base}
    write_hub_files(
        folder, {**found, **outer, "config": config}, {place + key: t for key, t in tensors.items()}, file.head
    )


def _parts_of(model_type: object) -> Mapping[str, str]:
    """The prefixes of a model, and what our names of their networks' tensors begin with."""
    return _PARTS if model_type in _ENCODER_DECODERS else {_OWN: ""}


def _network_names(parts: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The prefix that a network's tensor belongs to, and its name there, by our name."""
    return {ours + name: (part, theirs) for part, ours in parts.items() for name, theirs in _NETWORK.items()}


def _rows_of_parts(table: Tensor, anatomy: Anatomy) -> dict[str, Tensor]:
    """What the table (V, 2 L K E) holds of each prefix, as one vector."""
    encoder, own, cross = attention_places(anatomy)
    if anatomy.encoder is None:
        return {_OWN: table.reshape(-1)}
    by_place = table.view(len(table), cross.stop, -1)
    places = zip(_PARTS, (encoder, own, cross), strict=True)
    return {part: by_place[:, chosen].reshape(-1) for part, chosen in places}


def _group(name: str) -> str:
    return f"prefix_tunings.{name}."


def _by_part(
    tensors: Mapping[str, Tensor], name: str, parts: Mapping[str, str], folder: Path
) -> dict[str, dict[str, Tensor]]:
    """The tensors of each prefix by their names within its module."""
    found: dict[str, dict[str, Tensor]] = {part: {} for part in parts}
    for key, tensor in tensors.items():
        _, group, within = key.rpartition(_group(name))
        part, _, ending = within.partition(".")
        if not group or part not in found:
            raise RecipeError(
                f"The adapter holds {key!r} beside the prefixes that models of its type have: {', '.join(parts)}.",
                "Begin from an adapter that is a prefix and nothing else.",
                file=str(folder),
            )
        if ending in found[part] and not torch.equal(found[part][ending], tensor):
            raise RecipeError(
                f"{key} is not what the other layers have for the prefix's {ending}, of which there is one.",
                "Save the adapter again with the tool that made it.",
                file=str(folder),
            )
        found[part][ending] = tensor
    return found


def _made(tensors: Mapping[str, Tensor]) -> Tensor:
    """The rows that a network makes: W₂ tanh(W₁ e + c₁) + c₂."""
    own = {ours: tensors[theirs] for ours, theirs in _NETWORK.items()}
    inner = torch.tanh(own["embedding"] @ own["network.0.weight"].t() + own["network.0.bias"])
    return inner @ own["network.2.weight"].t() + own["network.2.bias"]


def _check(config: dict[str, Any], path: Path, *, in_all: bool) -> None:
    """Raise RecipeError for a config that is not a plain prefix's; in_all: one of every attention of an encoder-decoder."""
    for key in _EVERYWHERE if in_all else ():
        if not config.get(key, True):
            raise RecipeError(
                f"The adapter has {key} = False; prefix-tuning has a prefix in every attention of an encoder-decoder.",
                "Begin afresh without method.from.",
                file=str(path),
                field=key,
            )
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
