"""Models that begin at random weights: a config, fitted to its tokenizer, and the draw.

Every module is drawn as `transformers` draws it, from a generator of its own that the seed and the module's name decide: another
depth, vocabulary or head leaves the other parts as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from luthier.errors import NotFound, RecipeError
from luthier.models.settings import ModelSettings
from luthier.models.shapes import NAMED
from luthier.ops.draws import salt_of
from luthier.store.files import read_json
from luthier.store.places import expanded

_CONFIG = "config.json"
_ROLES = ("pad", "bos", "eos")
_ROLES_OF_SOME = ("cls", "sep", "mask")
"""Special tokens that only some kinds of config name."""
_MOST_SPARE = 128
"""So many rows more than tokens an embedding may have, for a round number."""
_OF_THE_WRITER = ("architectures", "auto_map", "transformers_version", "_name_or_path", "dtype", "torch_dtype")
"""What a config says of the weights that it was saved with."""


# ── the config ──────────────────────────────────────────────────────────────────────────────────────────────────────


def with_values(settings: ModelSettings) -> ModelSettings:
    """The settings with the config itself in the place of where it is, and with its tokenizer's folder.

    Those of a model that has weights stay as they are. Raises NotFound, RecipeError, DataError.
    """
    given = settings.config
    if given is None:
        return settings
    if not isinstance(given, str):
        values, folder = given, None
    elif given in NAMED:
        values, folder = _without_ids(NAMED[given]), None
    else:
        file = _config_file(given)
        values, folder = read_json(file), file.parent
    model_type = values.get("model_type") if isinstance(values, dict) else None
    if model_type not in CONFIG_MAPPING:
        raise RecipeError(
            f"The config's model_type is {model_type!r}, which the installed transformers does not know.",
            "Set it to a type that it knows, such as llama, bert or t5.",
            field="model.config",
        )
    if values.get("quantization_config") is not None:
        raise RecipeError(
            "The config is that of a quantized model, and random weights are not in few bits.",
            "Take its quantization_config out.",
            field="model.config",
        )
    kept = {key: value for key, value in values.items() if key not in _OF_THE_WRITER}
    tokenizer = settings.tokenizer or (None if folder is None else str(folder))
    return settings.model_copy(update={"config": kept, "tokenizer": tokenizer})


def _config_file(given: str) -> Path:
    path = expanded(given)
    file = path / _CONFIG if path.is_dir() else path
    if not file.is_file():
        raise NotFound(
            f"There is no config {given!r}: no file, no folder with a {_CONFIG}, and none of the names {', '.join(NAMED)}.",
            "Correct the path, or write the config out, such as {model_type: llama, hidden_size: 128}.",
            field="model.config",
        )
    return file


def _without_ids(values: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what depends on a tokenizer."""
    return {key: value for key, value in values.items() if key != "vocab_size" and not key.endswith("_token_id")}


def tokenizer_folder(settings: ModelSettings, files: tuple[str, ...]) -> Path:
    """Where a new model's tokenizer is; files: of which one must be there. Raises RecipeError, NotFound."""
    if settings.tokenizer is None:
        raise RecipeError(
            "A model that begins at random weights needs a tokenizer.",
            "Set model.tokenizer to a tokenizer's folder; 'luthier tokenizer DATA --out FOLDER' trains one.",
            field="model.tokenizer",
        )
    folder = expanded(settings.tokenizer)
    if not any((folder / name).is_file() for name in files):
        found = (
            f"{folder} has no tokenizer: none of {', '.join(files)} is in it."
            if folder.is_dir()
            else f"There is no folder {folder}."
        )
        raise NotFound(
            found,
            "Set model.tokenizer to a tokenizer's folder; 'luthier tokenizer' trains one.",
            field="model.tokenizer",
        )
    return folder


def fitted(values: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """A config's values with the size of a tokenizer's vocabulary and its special tokens, where it leaves them out.

    Raises RecipeError where it says something else than the tokenizer.
    """
    size = len(tokenizer)
    stated = values.get("vocab_size")
    if stated is not None and not size <= stated < size + _MOST_SPARE:
        raise RecipeError(
            f"The config's vocab_size is {stated}, but the tokenizer has {size} tokens.",
            f"Take vocab_size out of the config, or set it to {size}.",
            field="model.config",
        )
    found = {"vocab_size": size, **values}
    defaults = CONFIG_MAPPING[values["model_type"]]()
    known = defaults.to_dict()
    roles = (*_ROLES, *(role for role in _ROLES_OF_SOME if f"{role}_token_id" in known))
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in roles}
    for key, token in ids.items():
        if key in values and values[key] != token and token is not None and values[key] is not None:
            raise RecipeError(
                f"The config's {key} is {values[key]}, but the tokenizer's is {token}.",
                f"Take {key} out of the config, or set it to {token}.",
                field="model.config",
            )
        if token is not None or key in known:
            found[key] = token
    if defaults.is_encoder_decoder:
        _check_padding(ids["pad_token_id"])
        if values.get("decoder_start_token_id") is None:
            found["decoder_start_token_id"] = ids["pad_token_id"]
    for key in ("forced_bos_token_id", "forced_eos_token_id"):
        if known.get(key) is not None and key not in values:
            found[key] = ids[key.removeprefix("forced_")]
    return found


def _check_padding(pad: int | None) -> None:
    if pad is None:
        raise RecipeError(
            "The tokenizer has no padding token, with which the decoder of a new encoder-decoder begins.",
            "Train one with 'luthier tokenizer DATA --for encoder-decoder --out FOLDER'.",
            field="model.tokenizer",
        )


# ── the draw ────────────────────────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def draw_model(
    auto: Any, config: PreTrainedConfig, dtype: torch.dtype, attn_implementation: str | None, seed: int
) -> PreTrainedModel:
    """A model by one of transformers' classes, on the CPU, at random weights that the seed decides.

    transformers draws from the one generator of the process, which afterwards is where it was.
    """
    with torch.device("meta"):
        model: PreTrainedModel = auto.from_config(config, dtype=dtype, attn_implementation=attn_implementation)
    model.to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]):
        for name, module, owner in _inside_out("", model, model):
            torch.manual_seed((salt_of(name) ^ seed) & (2**63 - 1))
            owner._init_weights(module)  # type: ignore[no-untyped-call]
    model.tie_weights()
    model.config.architectures = [type(model).__name__]
    return model


def _inside_out(
    name: str, module: nn.Module, owner: PreTrainedModel
) -> Iterator[tuple[str, nn.Module, PreTrainedModel]]:
    """Every module after those in it, with the model that knows how it is drawn."""
    for part, child in module.named_children():
        inner = child if isinstance(child, PreTrainedModel) else owner
        yield from _inside_out(f"{name}.{part}" if name else part, child, inner)
    yield name, module, owner
