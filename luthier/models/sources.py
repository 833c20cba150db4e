"""Where a base model comes from, and its config, tokenizer and weights read from there.

A model is a built-in name, a local transformers folder, a `.gguf` file, or a hub id; or a config and a tokenizer, from which it
is drawn. Weights are safetensors or GGUF: a pickle can run any code when it is opened, and so can a model's own Python code;
neither is ever done.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from luthier.errors import DataError, LuthierError, NetworkError, NotAllowed, NotFound, RecipeError, ResourceError
from luthier.models.builtin import BUILTIN_NAMES, builtin_folder
from luthier.models.drawing import draw_model, fitted, tokenizer_folder, with_values
from luthier.models.families import family_of
from luthier.models.fingerprints import fingerprint_files
from luthier.models.gguf_files import read_gguf_config, read_gguf_tokenizer, read_gguf_weights
from luthier.models.hub import download
from luthier.models.new_tokens import Added, add_tokens, grown_size
from luthier.models.settings import ModelSettings
from luthier.models.streaming import Streaming
from luthier.quantization.stored import StoredForm, stored_form
from luthier.store.cache import cache_root
from luthier.store.files import read_json
from luthier.store.places import expanded

Announce = Callable[[str], None]

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Draw:
    """The config of a model that begins at random weights, and the seed that decides them."""

    config: Mapping[str, Any]
    seed: int


@dataclass(frozen=True)
class ModelSource:
    """A model found: its local folder, for a GGUF file its name in there, for a hub model its commit.

    draw: for one that begins at random weights, what they are drawn by; the folder then is its tokenizer's.
    added: the tokens that are added to it.
    """

    name: str
    folder: Path
    gguf_file: str | None
    kind: Literal["builtin", "folder", "hub", "gguf", "config"]
    revision: str | None
    draw: Draw | None = None
    added: Added | None = None

    @property
    def gguf(self) -> Path | None:
        """The path of the GGUF file."""
        return None if self.gguf_file is None else self.folder / self.gguf_file


# ── finding ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def locate(
    settings: ModelSettings, announce: Announce, root: Path | None = None, *, seed: int = 0, weights: bool = True
) -> ModelSource:
    """Where the model is on this machine, and what is added to it; root, seed, Raises: as `_located`.

    weights: whether a hub model's are needed; else its config and tokenizer alone are fetched.
    """
    source = _located(settings, announce, root, seed, weights)
    if not settings.add_tokens:
        return source
    if source.gguf is not None:
        raise RecipeError(
            f"{source.name} is a .gguf file, to which no tokens can be added.",
            "Name the model's safetensors folder, or leave add_tokens out.",
            field="model.add_tokens",
        )
    return replace(source, added=Added(settings.add_tokens, seed))


def _located(settings: ModelSettings, announce: Announce, root: Path | None, seed: int, weights: bool) -> ModelSource:
    """Where the model is on this machine, after fetching it if it was not; `root` is the cache (None: the user's).

    seed: decides the weights of a model that has none, and the rows of tokens that are added.
    Raises: NotFound, with near names; RecipeError for an adapter, a pickle or an unfinished folder; NotAllowed for a gated
    model; NetworkError; DiskFull.
    """
    name = settings.name
    path = expanded(name)
    is_hub = (
        name not in BUILTIN_NAMES and not path.exists() and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None
    )
    if settings.revision is not None and (not is_hub or path.suffix == ".gguf"):
        raise RecipeError(
            f"model.revision is {settings.revision!r}, but {name} is no hub model.",
            "Leave revision out.",
            field="model.revision",
        )
    if settings.config is not None:
        return _locate_config(with_values(settings), seed)
    if name in BUILTIN_NAMES:
        return ModelSource(name, builtin_folder(name, announce, root), None, "builtin", None)
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise _not_found(name, path)
        return ModelSource(name, path.parent, path.name, "gguf", None)
    if path.is_dir():
        _check_folder(path)
        return ModelSource(name, path, None, "folder", None)
    if path.is_file() or path.suffix.lower() in (*_PICKLES, ".safetensors"):
        raise _not_a_model(name, path)
    if not is_hub:
        raise _not_found(name, path)
    folder = _fetch(name, settings.revision, announce, weights)
    _check_folder(folder, name, weights=weights)
    return ModelSource(name, folder, None, "hub", folder.name)


def _locate_config(settings: ModelSettings, seed: int) -> ModelSource:
    assert isinstance(settings.config, dict)
    folder = tokenizer_folder(settings, _TOKENIZER_FILES)
    return ModelSource(settings.name, folder, None, "config", None, Draw(settings.config, seed))


def _fetch(name: str, revision: str | None, announce: Announce, weights: bool) -> Path:
    """A hub model's folder; where the name might also be meant as a local path, the error says so."""
    try:
        return download(name, revision, announce, weights=weights)
    except (NotFound, NetworkError) as error:
        path = Path(name)
        if path.parent.is_dir():
            error.mend = f"{error.mend} If a local folder is meant: {path.parent} holds no {path.name}."
        raise


def _not_a_model(name: str, file: Path) -> RecipeError | NotFound:
    if not file.is_file():
        return _not_found(name, file)
    if file.suffix.lower() in _PICKLES:
        return RecipeError(
            f"{name} is a pickle, and opening one can run any code that is in it; Luthier reads safetensors and GGUF only.",
            "Convert it once where you trust it (load it in transformers, then save_pretrained), and name that folder.",
            field="model",
        )
    if file.suffix.lower() == ".safetensors":
        return RecipeError(
            f"{name} is a weight file alone.",
            f"Name its folder, {file.parent}, with config and tokenizer.",
            field="model",
        )
    return RecipeError(
        f"{name} is a file, but not a .gguf one.", "Name a model's folder, a .gguf file or a hub id.", field="model"
    )


def _not_found(name: str, path: Path) -> NotFound:
    """What to say of a name that stands for nothing: near built-in names, and near names in the folder it points to."""
    near = difflib.get_close_matches(name.lower(), BUILTIN_NAMES, n=1, cutoff=0.4)
    if path.parent.is_dir():
        siblings = [entry.name for entry in path.parent.iterdir() if entry.is_dir() or entry.suffix == ".gguf"]
        near += [
            str(path.parent / sibling) for sibling in difflib.get_close_matches(path.name, siblings, n=2, cutoff=0.6)
        ]
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    return NotFound(
        f"There is no model {name!r}: it is no built-in name ({', '.join(BUILTIN_NAMES)}) and no folder or .gguf file here.",
        f"{hint}A hub model is written owner/model.",
        field="model",
    )


def _check_folder(folder: Path, name: str | None = None, *, weights: bool = True) -> None:
    """See that a folder is a whole model, before anything heavy is done with it; or one but for its weights."""
    shown = name or str(folder)
    names = {entry.name for entry in folder.iterdir()}
    if "config.json" not in names and "adapter_config.json" in names:
        base = _base_of_adapter(folder)
        raise RecipeError(
            f"{shown} is an adapter, not a model: it has adapter_config.json and no config.json.",
            f"Set model to its base{f' ({base})' if base else ''} and go on from it with method: {{from: {shown}}}.",
            field="model",
        )
    if "config.json" not in names:
        hint = ""
        if (folder / "model").is_dir():
            hint = f"This looks like a run of full tuning: name {folder / 'model'}."
        elif (folder / "adapter").is_dir():
            hint = f"This looks like a run: set model to its base and go on from it with method: {{from: {shown}}}."
        raise RecipeError(
            f"{shown} is no model folder: it has no config.json.",
            hint or "Name a folder that transformers can load.",
            field="model",
        )
    if weights:
        weight_files(folder, shown)
    if not names.intersection(_TOKENIZER_FILES):
        raise RecipeError(
            f"{shown} has no tokenizer: none of {', '.join(_TOKENIZER_FILES)} is in it.",
            "Put the tokenizer's files beside the weights.",
            field="model",
        )


def _base_of_adapter(folder: Path) -> str:
    config = read_json(folder / "adapter_config.json")
    keys = ("base_model_name_or_path", "model_name")  # of peft, of adapters
    base = next((config[key] for key in keys if config.get(key)), None) if isinstance(config, dict) else None
    return base if isinstance(base, str) else ""


def weight_files(folder: Path, shown: str) -> list[Path]:
    """The safetensors files of a model folder, in order. Raises: RecipeError if there are none, or if one is missing."""
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    if (folder / _INDEX).is_file():
        index = read_json(folder / _INDEX)
        try:
            files = sorted(folder / name for name in {str(name) for name in index["weight_map"].values()})
        except (KeyError, TypeError, AttributeError):
            raise DataError(
                "This index has no weight_map.", "Fetch the model again.", file=str(folder / _INDEX)
            ) from None
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise RecipeError(
                f"{shown} lacks {', '.join(missing)}, which its {_INDEX} names.",
                "Fetch the model again.",
                field="model",
            )
        return files
    pickles = sorted(entry.name for entry in folder.iterdir() if entry.suffix.lower() in _PICKLES)
    if pickles:
        raise RecipeError(
            f"{shown} has its weights as pickles only ({', '.join(pickles[:3])}), and opening one can run any code that is in it.",
            "Convert it once where you trust it: load it in transformers, then save_pretrained to a new folder.",
            field="model",
        )
    raise RecipeError(
        f"{shown} holds no {_WEIGHTS} and no {_INDEX}: there are no weights that Luthier reads.",
        "Use a model with safetensors weights, or a .gguf file.",
        field="model",
    )


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_config(source: ModelSource) -> PreTrainedConfig:
    """The model's config, as its weights lie there. Raises: NotAllowed if it needs the model's own code; RecipeError, DataError."""
    if source.gguf is not None:
        return read_gguf_config(source.gguf)
    if source.draw is not None:
        return _drawn_config(source, source.draw)
    file = source.folder / "config.json"
    values = read_json(file)
    model_type = values.get("model_type") if isinstance(values, dict) else None
    if not isinstance(model_type, str):
        raise DataError("This config has no model_type.", "Fetch the model again.", file=str(file))
    if model_type not in CONFIG_MAPPING:
        if "auto_map" in values:
            raise NotAllowed(
                f"The model {source.name} ({model_type}) needs Python code of its own to be run, which Luthier does not do.",
                "Use a model that transformers itself knows.",
                field="model",
            )
        raise RecipeError(
            f"The model {source.name} is a {model_type!r}, which the installed transformers does not know.",
            "Install a newer transformers, or use another model.",
            field="model",
        )
    with _reading(file):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            source.folder, trust_remote_code=False, local_files_only=True
        )
    if values.get("quantization_config") is not None:
        stored_form(source.name, values["quantization_config"])
        del config.quantization_config  # what reads the weights is ours
    return config


def _drawn_config(source: ModelSource, draw: Draw) -> PreTrainedConfig:
    values = fitted(draw.config, read_tokenizer(source))
    try:
        config: PreTrainedConfig = AutoConfig.for_model(**values)
    except Exception as error:  # of whatever kind the class checks its values with
        text = " ".join(str(error).split())
        raise RecipeError(
            f"transformers takes this for no config of type {values['model_type']}: {text[:300]}.",
            "Correct it.",
            field="model.config",
        ) from error
    _check_keys(config, draw.config)
    return config


def _check_keys(config: PreTrainedConfig, values: Mapping[str, Any]) -> None:
    """Raise RecipeError for a key that is nearly one of such a config: transformers would keep it and use it for nothing."""
    known = set(type(config)().to_dict()) | set(config.attribute_map)
    for strange in values.keys() - known:
        if near := difflib.get_close_matches(strange, known, n=1, cutoff=0.85):
            raise RecipeError(
                f"Configs of type {config.model_type} have no {strange!r}.",
                f"Did you mean {near[0]}?",
                field="model.config",
            )


def stored_form_of(source: ModelSource) -> StoredForm | None:
    """In what form a model's files have it quantized; None if they do not. Raises RecipeError for one that is not read."""
    if source.gguf is not None or source.draw is not None:
        return None
    quantization = read_json(source.folder / "config.json").get("quantization_config")
    return None if quantization is None else stored_form(source.name, quantization)


def read_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The model's fast tokenizer, with the tokens that are added. Raises: NotAllowed if it needs code of its own; RecipeError, DataError."""
    if source.gguf is not None:
        return read_gguf_tokenizer(source.gguf)
    file = source.folder / "tokenizer_config.json"
    with _reading(source.folder if not file.is_file() else file):
        tokenizer: Any = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False, local_files_only=True)
    if not tokenizer.is_fast:
        raise RecipeError(
            f"The model {source.name} has only a slow tokenizer, which does not tell where its tokens lie in the text.",
            "Use a model with a tokenizer.json.",
            field="model",
        )
    result: PreTrainedTokenizerBase = tokenizer
    if source.added is not None:
        add_tokens(result, source.added.tokens)
    return result


def with_new_tokens(
    config: PreTrainedConfig, source: ModelSource, tokenizer: PreTrainedTokenizerBase | None = None
) -> PreTrainedConfig:
    """The model's config as it is once the tokens are there that are added to it; tokenizer: the model's, if it was read already."""
    if source.added is not None:
        config.vocab_size = grown_size(int(config.vocab_size), len(tokenizer or read_tokenizer(source)))
    return config


def read_weights(
    source: ModelSource,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    attn_implementation: str | None = None,
    streaming: Streaming | None = None,
) -> PreTrainedModel:
    """The model with all its weights, in `dtype`, on the CPU; those that `streaming` chooses are packed while they are read.

    A new one is drawn.

    Raises: DataError, with the file, if weights are damaged, missing, unknown or of another shape than the config says;
    ResourceError if memory does not suffice.
    """
    if source.gguf is not None:
        assert streaming is None, "what is packed of a GGUF file is read by `gguf_packed`"
        model, report = read_gguf_weights(source.gguf, config, dtype, attn_implementation)
        check_complete(source.gguf, report)
        return model
    model, report = read_folder(_class_of(config), source, config, dtype, attn_implementation, streaming)
    check_complete(source.folder, report)
    return model


def read_folder(
    auto: Any,
    source: ModelSource,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    attn_implementation: str | None,
    streaming: Streaming | None = None,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A folder's model by one of transformers' classes, and the report of what was missing and what was too much.

    A new model is drawn instead, and lacks nothing.
    Raises: DataError, with the file, if weights are damaged; ResourceError if memory does not suffice.
    """
    if source.draw is not None:
        assert streaming is None, "random weights train, so none is packed"
        return draw_model(auto, config, dtype, attn_implementation, source.draw.seed), {}
    for file in weight_files(source.folder, source.name):
        with _reading(file), safe_open(file, framework="pt"):
            pass  # opening checks the header against the file's length
    with _reading(source.folder):
        loaded: Any = auto.from_pretrained(
            source.folder,
            config=config,
            dtype=dtype,
            attn_implementation=attn_implementation,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # so that they are reported, and refused below
            output_loading_info=True,
            **({} if streaming is None else {"quantization_config": streaming}),
        )
    model, report = loaded
    if streaming is not None:
        streaming.check(report)
    return model, report


def _class_of(config: PreTrainedConfig) -> Any:
    """What transformers loads a language model with: one that writes, one that fills masks, or an encoder-decoder."""
    if family_of(config.model_type).kind == "encoder":
        return AutoModelForMaskedLM
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def read_answer_start(source: ModelSource, config: PreTrainedConfig) -> int | None:
    """The token that an encoder-decoder's decoder begins with; None for a model of one stack.

    transformers keeps it in either of two files, and some have it as the class's default or, as T5, mean the padding token.
    Raises RecipeError if there is none.
    """
    if not config.is_encoder_decoder:
        return None
    names = () if source.draw is not None else ("generation_config.json", "config.json")
    files = [source.folder / name for name in names]
    stated = [read_json(file).get("decoder_start_token_id") for file in files if file.is_file()]
    for token in (*stated, *map(config.to_dict().get, ("decoder_start_token_id", "pad_token_id"))):
        if isinstance(token, int):
            return token
    raise RecipeError(
        f"{source.name} does not say which token its decoder begins with.",
        "Set decoder_start_token_id in its generation_config.json.",
        field="model",
    )


def check_complete(place: Path, report: dict[str, Any]) -> None:
    """Raise DataError if a loading report says that the weights do not fit the model."""
    words = {
        "missing_keys": "missing",
        "unexpected_keys": "not part of this architecture",
        "mismatched_keys": "of another shape than the config says",
        "error_msgs": "reported by transformers",
    }
    faults = []
    for key, what in words.items():
        names = sorted(
            " ".join(map(str, name)) if isinstance(name, tuple) else str(name) for name in report.get(key, ())
        )
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            faults.append(f"{what}: {', '.join(names[:4])}{more}")
    if faults:
        raise DataError(
            f"The weights do not fit the config; {'; '.join(faults)}.",
            "Fetch the model again, or save it again with save_pretrained of the right class.",
            file=str(place),
        )


@contextmanager
def _reading(place: Path) -> Iterator[None]:
    """Turn what the libraries say of files that they cannot read into an error with the place."""
    try:
        yield
    except LuthierError:
        raise
    except Exception as error:
        # A damaged file shows as any of a dozen errors of five libraries, some of them bare Exceptions.
        text = " ".join(str(error).split())
        if "trust_remote_code" in text:
            raise NotAllowed(
                f"{place} needs Python code of its own to be run, which Luthier does not do.",
                "Use a model that transformers itself knows.",
                field="model",
            ) from error
        if "can't allocate memory" in text or "out of memory" in text:
            raise ResourceError(
                "There is not enough memory for the weights.",
                "Use a smaller model, or model.dtype bf16.",
                file=str(place),
            ) from error
        raise DataError(
            f"The model cannot be read ({type(error).__name__}: {text[:300]}).",
            "It may be cut off or damaged: fetch it again.",
            file=str(place),
        ) from error


def fingerprint(source: ModelSource, root: Path | None = None) -> str:
    """The SHA-256 of the model's weights and config; `root` is the cache that remembers it (None: the user's).

    Of a new one: of its config, its tokenizer and the seed that it is drawn by. Tokens that are added count, with their seed.
    """
    if source.added is not None:
        base = fingerprint(replace(source, added=None), root)
        new = json.dumps([source.added.tokens, source.added.seed])
        return hashlib.sha256(f"{base} {new}".encode()).hexdigest()
    if source.draw is not None:
        files = [source.folder / name for name in _TOKENIZER_FILES if (source.folder / name).is_file()]
        of_tokenizer = fingerprint_files(files, root or cache_root())
        drawn_by = json.dumps([dict(source.draw.config), source.draw.seed], sort_keys=True)
        return hashlib.sha256(f"{drawn_by} {of_tokenizer}".encode()).hexdigest()
    files = (
        [source.gguf]
        if source.gguf is not None
        else [*weight_files(source.folder, source.name), source.folder / "config.json"]
    )
    return fingerprint_files(files, root or cache_root())
